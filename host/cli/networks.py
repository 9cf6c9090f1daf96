"""What commands that compile a network share: its options, the accelerator they describe, and the Program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from host.cli.app import console, fail, say

if TYPE_CHECKING:
    import torch

    from host.program.program import Program
    from host.schedule.cycles import Memory
    from hw.config import Config

Weights = Annotated[Path | None, typer.Option(help="The network's .pth or .safetensors file.")]
Photos = Annotated[
    Path | None, typer.Option(help="Calibration images of networks for photos: a folder of images for each class.")
]
Lanes = Annotated[int, typer.Option(help="Output channels computed at once.")]
Vec = Annotated[int, typer.Option(help="Input channels computed at once.")]
FeatureBytes = Annotated[int, typer.Option(help="Bytes of each of the two feature buffers.")]
WeightBytes = Annotated[int, typer.Option(help="Bytes of the weight ring.")]
PoolColumns = Annotated[int, typer.Option(help="Longest pooled row, pixels.")]
PortBits = Annotated[
    int | None,
    typer.Option(help="Width of the memory port; by default 128, or what --bytes-per-cycle needs.", show_default=False),
]
BytesPerCycle = Annotated[
    float | None,
    typer.Option(help="Bandwidth of the memory, for reads and for writes; by default the port's.", show_default=False),
]
Latency = Annotated[int, typer.Option(min=0, help="Cycles from a read request to its first beat.")]
Batch = Annotated[int, typer.Option(min=1, help="Images in a launch.")]
WriteBack = Annotated[
    bool, typer.Option("--writeback", help="Write every layer's outputs to memory, as training needs them.")
]
Fallback = Annotated[
    str, typer.Option(help="Layers that do not fit: error, or cpu (the same integers there).", metavar="error|cpu")
]


def configuration(
    lanes: int,
    vec: int,
    feature_bytes: int,
    weight_bytes: int,
    pool_columns: int,
    port_bits: int | None,
    bytes_per_cycle: float | None,
    latency: int,
) -> tuple[Config, Memory]:
    """The accelerator and the memory that options describe; ends the command if the port is too narrow for the memory.

    The default port is one feature word to one weight word wide, 128 bits if these allow and the memory needs no more.
    """
    from host.schedule.cycles import Memory
    from hw.config import Config

    if bytes_per_cycle is not None and not 0 < bytes_per_cycle <= 64:
        raise typer.Exit(fail(f"--bytes-per-cycle must be more than 0 and at most 64, not {bytes_per_cycle:g}"))
    if port_bits is None:
        port_bits = 128
        while bytes_per_cycle is not None and port_bits < 8 * bytes_per_cycle:
            port_bits *= 2
        port_bits = max(8 * vec, min(port_bits, 8 * lanes * min(vec, 8)))
    config = Config(
        lanes=lanes,
        vec=vec,
        feature_bytes=feature_bytes,
        weight_bytes=weight_bytes,
        port_bits=port_bits,
        pool_columns=pool_columns,
    )
    if bytes_per_cycle is not None and bytes_per_cycle > config.port_bytes:
        raise typer.Exit(
            fail(
                f"the memory port carries {config.port_bytes} bytes a cycle, --bytes-per-cycle says "
                f"{bytes_per_cycle:g}: give a lower one, or a wider port (--port-bits; {lanes} lanes x vec {vec} allow "
                f"{8 * lanes * min(vec, 8)} at most)"
            )
        )
    return config, Memory(latency, bytes_per_cycle)


def compiled(
    net: str,
    config: Config,
    *,
    weights: Path | None = None,
    photos: Path | None = None,
    fallback: str = "error",
    per_channel: bool = False,
    images: int | None = None,
    data_dir: str | None = None,
    values_matter: bool = True,
) -> Program:
    """A network of `redline.models` for an accelerator; ends the command with a line if it cannot be had.

    Parameters
    ----------
    images : int, optional
        Calibration images; by default 512, or 16 photos.
    values_matter : bool
        If not, networks are calibrated on noise without a word: for what depends on shapes only.
    """
    import torch

    from host import models
    from host.compiler.compile import compile as compile_network
    from host.datasets import data, imagenet

    if net not in models.MODELS:
        raise typer.Exit(fail(f"no network {net!r}; there are {', '.join(models.MODELS)}"))
    if fallback not in ("error", "cpu"):
        raise typer.Exit(fail(f"--fallback is error or cpu, not {fallback!r}"))
    small = net in models.GREY
    if small and photos is not None:
        raise typer.Exit(fail(f"{net} takes images of 28x28 pixels; name their folder with --data-dir, not --photos"))
    notes = []
    known = weights is not None or net in models.SHIPPED
    if not known:
        notes.append("weights are random (--weights)")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # shifts depend on weights, and a microprogram's cycles on shifts
        network = models.MODELS[net](pretrained=weights or net in models.SHIPPED)
    if not values_matter:
        calibrate = torch.randn(1, *((1, 28, 28) if small else (3, 224, 224)), generator=_generator())
    elif small:
        calibrate = data.load("fashion-mnist", "train", data_dir).head(images or 512).pixels
    elif photos is not None:
        calibrate = imagenet.load(photos).spread(images or 16).pixels
    else:
        calibrate = torch.randn(1, 3, 224, 224, generator=_generator())
        notes.append("calibration is on noise (--photos)")
    program = compile_network(
        network, config, calibrate=calibrate, per_channel=per_channel, fallback="cpu" if fallback == "cpu" else "error"
    )
    if notes and values_matter:
        say("note", f"{' and '.join(notes)}: the fractions mean nothing, all else holds", "yellow")
    return program


def _generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(1)


def wide() -> Console:
    """The console for tables of layers, which need 120 columns: a narrower terminal wraps their lines."""
    return Console(width=max(console.width, 120), markup=False, emoji=False)


def short_figure(count: float) -> str:
    """Three digits and K, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= limit * 0.9995:
            scaled = count / limit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{count:.0f}"
