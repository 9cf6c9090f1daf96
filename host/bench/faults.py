"""Speed of fault injection beside PyTorchFI and MRFI: a forward pass with 1,000 flips an image, all in turns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import nn

from host import models
from host.bench.injectors import MRFI, PyTorchFI, Redline
from host.bench.turns import in_turns

FLIPS = 1000
ROUNDS = {1: 15, 16: 5}
"""Rounds at each batch."""
SITES = ("mac", "feature")
RATIOS = ("pytorchfi_over_ours", "mrfi_over_ours", "pytorchfi_declared_once_over_ours")
SEED = 1
MODELS = {
    "redline": "the accelerator's int8 arithmetic, every byte as the RTL has it; mac: a bit of a 32-bit accumulator "
    "after one of its steps, which stays wrong in the steps that follow; feature: a bit of a stored 8-bit output",
    "pytorchfi": "float32 network; a bit of the 8-bit code of one output of a convolution or linear layer, the others "
    "as they are; nothing inside a layer",
    "mrfi": "float32 arithmetic; outputs of convolutions and linear layers are rounded to 8-bit fixed point, and a bit "
    "of one of them flips; nothing inside a layer",
}
"""What each models."""

Progress = Callable[[str], None]


def measure(
    progress: Progress = lambda _: None,
    *,
    network: Callable[[], nn.Module] = models.alexnet,
    shape: tuple[int, int, int] = (3, 224, 224),
    flips: int = FLIPS,
    rounds: dict[int, int] | None = None,
) -> dict[str, Any]:
    """Time a forward pass with faults, from float images to float outputs, faults drawn anew each time.

    Parameters
    ----------
    progress : callable (what is measured)
    network, shape : the network and its images
    flips : int
        Of each image.
    rounds : dict
        Rounds at each batch.

    Returns
    -------
    dict
        pytorchfi_over_ours, mrfi_over_ours : their time over that of Redline's emulator, used as they document; the
            worst over batches, over our sites, and over MRFI's ways to quantise
        pytorchfi_declared_once_over_ours : the same for PyTorchFI with its lists of places exchanged from outside
        rows : times by batch, ms of processor time an image
        models, versions, kernels, network, flips, threads : of the measurement

    Raises
    ------
    MissingPackage
        If PyTorchFI or MRFI is not installed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(network, shape, flips, batch, n, progress) for batch, n in (rounds or ROUNDS).items()]
    finally:
        torch.set_num_threads(before)
    return {
        **{key: min(row[key] for row in rows) for key in RATIOS},
        "flips": flips,
        "rows": [{key: value for key, value in row.items() if key != "kernels"} for row in rows],
        "models": MODELS,
        "network": network.__name__,
        "kernels": rows[0]["kernels"],
        "threads": 1,
        "versions": {name: metadata.version(name) for name in ("torch", "pytorchfi", "mrfi")},
    }


def _row(
    network: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    flips: int,
    batch: int,
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    progress(f"batch {batch}")
    torch.manual_seed(SEED)
    random.seed(SEED)
    net = network().eval()
    x = torch.randn(batch, *shape)
    ours = {site: Redline(net, x, flips, site) for site in SITES}
    theirs: dict[str, PyTorchFI | MRFI] = {
        "pytorchfi": PyTorchFI(net, x, flips),
        "pytorchfi_declared_once": PyTorchFI(net, x, flips, declare=False),
        "mrfi": MRFI(net, x, flips),
        "mrfi_only_hit_values": MRFI(net, x, flips, layerwise=False),
    }
    contenders: dict[str, Callable[[], Any]] = {
        "fp32": partial(_plain, net, x),
        "clean": partial(ours["mac"].clean, x),
        **{f"ours_{site}": partial(injector, x) for site, injector in ours.items()},
        **{name: partial(injector, x) for name, injector in theirs.items()},
    }
    seconds = in_turns(contenders, rounds)
    slowest = max(seconds[f"ours_{site}"] for site in SITES)
    kernels = ours["mac"].device.describe()
    for injector in (*ours.values(), *theirs.values()):
        injector.close()
    return {
        "batch": batch,
        "ms_an_image": {name: round(value / batch * 1e3, 3) for name, value in seconds.items()},
        "pytorchfi_over_ours": round(seconds["pytorchfi"] / slowest, 2),
        "mrfi_over_ours": round(min(seconds["mrfi"], seconds["mrfi_only_hit_values"]) / slowest, 2),
        "pytorchfi_declared_once_over_ours": round(seconds["pytorchfi_declared_once"] / slowest, 2),
        "kernels": kernels,
    }


def _plain(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


if __name__ == "__main__":
    print(json.dumps(measure()))
