"""The benchmark of fault injectors: all flip one bit of as many values, and without them nothing is measured."""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from host import cli, models
from host.bench import faults, injectors
from host.bench.injectors import LAYERS, MRFI, ROOM, MissingPackage, PyTorchFI, Redline
from tests.needs import needs_packages

FLIPS, IMAGES = 60, 3

needs_both = needs_packages("comparison", "pytorchfi", "mrfi")

Values = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    random.seed(0)
    return models.lenet5().eval()


@pytest.fixture
def seen(net: nn.Module) -> Values:
    """By layer, of the last pass: outputs as computed, and as handed on. Injectors copy networks with their hooks."""
    found: Values = {}
    for name, module in net.named_modules():
        if isinstance(module, LAYERS):
            # Injectors change the tensor in place, after this hook.
            module.register_forward_hook(
                lambda _, __, out, name=name: found.__setitem__(name, (out.detach().clone(), out.detach()))
            )
    return found


def flips(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How many values of each image differ; in one bit of their 8-bit codes."""
    hit = before != after
    assert set(np.bitwise_count(((before ^ after)[hit] & 0xFF).astype(np.uint8)).tolist()) <= {1}
    return hit.reshape(len(hit), -1).sum(1)


# -- equal work


@needs_both
@pytest.mark.parametrize("declare", [True, False])
def test_pytorchfi_flips_a_bit_of_as_many_values_in_each_image(
    declare: bool, net: nn.Module, images: torch.Tensor, seen: Values
) -> None:
    ranges = {name: ROOM * largest for name, largest in injectors._ranges(net, images).items()}
    injector = PyTorchFI(net, images, FLIPS, declare=declare)
    for _ in range(2):
        injector(images)
        pfi = injector.injector
        places = list(zip(pfi.corrupt_batch, pfi.corrupt_layer, pfi.corrupt_dim1, pfi.corrupt_dim2, pfi.corrupt_dim3,
                          strict=True))  # fmt: skip
        assert np.bincount([image for image, *_ in places]).tolist() == [FLIPS] * IMAGES
        once = {place for place in places if places.count(place) == 1}

        def hits(where: Iterable[tuple], layer: int, shape: tuple[int, ...]) -> np.ndarray:
            found = np.zeros(shape, bool)
            for image, at, *dims in where:
                if at == layer:
                    found[(image, *(dim for dim in dims if dim is not None))] = True
            return found

        for layer, (name, (before, after)) in enumerate(seen.items()):
            # Its codes: towards zero on the way in, exact on the way out.
            code = (before / ranges[name] * 128).numpy().astype(int)
            hit = hits(once, layer, code.shape)
            now = np.where(hit, np.rint((after / ranges[name] * 128).numpy()).astype(int), code)
            assert (flips(code, now) == hit.reshape(IMAGES, -1).sum(1)).all()
            assert (before == after).numpy()[~hits(places, layer, code.shape)].all()
    injector.close()


@needs_both
def test_pytorchfi_draws_layers_in_proportion_to_their_neurons(net: nn.Module, images: torch.Tensor) -> None:
    injector = PyTorchFI(net, images, FLIPS, declare=False)
    drawn = []
    for _ in range(30):
        injector(images)
        drawn += injector.injector.corrupt_layer
    counts = np.bincount(drawn) / (30 * FLIPS * IMAGES)
    sizes = np.array([size for _, size in injectors._neurons(net, images[:1])])
    assert counts == pytest.approx(sizes / sizes.sum(), abs=0.03)


@needs_both
@pytest.mark.parametrize("layerwise", [True, False])
def test_mrfi_flips_a_bit_of_as_many_values_in_each_image(
    layerwise: bool, net: nn.Module, images: torch.Tensor, seen: Values
) -> None:
    bits = {name: injectors._integer_bits(ROOM * most) for name, most in injectors._ranges(net, images).items()}
    injector = MRFI(net, images, FLIPS, layerwise=layerwise)
    assert injector.flips == FLIPS
    injector(images)
    total = np.zeros(IMAGES, int)
    for name, (before, after) in seen.items():
        scale = 127 / 2.0 ** bits[name]
        # Flips in earlier layers make some larger than the code has room for.
        codes = [
            np.clip(np.rint((values * scale).numpy()).astype(int), least, 127)
            for values, least in ((before, -127), (after, -128))
        ]
        if not layerwise:
            untouched = (before == after).numpy()
            assert (codes[0] != codes[1])[~untouched].all()
            codes[1][untouched] = codes[0][untouched]
        total += flips(*codes)
        if layerwise:
            assert np.allclose(after.numpy() * scale, codes[1], atol=1e-3)
    # Places are drawn with replacement: now and then two meet.
    assert (total <= FLIPS).all()
    assert (total >= 0.9 * FLIPS).all()


@pytest.mark.parametrize("site", faults.SITES)
def test_ours_applies_as_many_in_each_image(site: str, net: nn.Module, images: torch.Tensor) -> None:
    injector = Redline(net, images, FLIPS, site)
    first, second = injector(images), injector(images)
    assert injector.applied == 2 * FLIPS * IMAGES
    clean = injector.clean(images)
    assert clean.shape == first.shape == (IMAGES, 10, 1, 1)
    assert (first != clean).any()
    assert (first != second).any(), "faults are drawn anew"
    with torch.no_grad():
        plain = net(images).numpy()
    assert np.corrcoef(clean.reshape(-1), plain.reshape(-1))[0, 1] > 0.9
    injector.close()


@given(st.integers(0, 5000), st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_shares_add_up_and_are_in_proportion(total: int, sizes: list[int]) -> None:
    shares = injectors._shares(total, sizes)
    assert sum(shares) == total
    for share, size in zip(shares, sizes, strict=True):
        assert abs(share - total * size / sum(sizes)) < 1


# -- measuring


@needs_both
def test_a_small_run_gives_every_figure() -> None:
    result = faults.measure(network=models.lenet5, shape=(1, 28, 28), flips=20, rounds={1: 1, 2: 1})
    assert json.loads(json.dumps(result)) == result
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    for ratio in faults.RATIOS:
        assert result[ratio] == min(row[ratio] for row in result["rows"])
    for row in result["rows"]:
        ms = row["ms_an_image"]
        slowest = max(ms["ours_mac"], ms["ours_feature"])
        # Rounded as they are reported.
        assert row["pytorchfi_over_ours"] == pytest.approx(ms["pytorchfi"] / slowest, rel=0.05)
        assert row["mrfi_over_ours"] == pytest.approx(min(ms["mrfi"], ms["mrfi_only_hit_values"]) / slowest, rel=0.05)
        assert set(result["models"]) == {"redline", "pytorchfi", "mrfi"}


@needs_both
def test_the_others_leave_the_log_as_it_was(net: nn.Module, images: torch.Tensor) -> None:
    before = list(logging.getLogger().handlers)
    PyTorchFI(net, images, 1).close()
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("name", ["pytorchfi", "mrfi"])
def test_a_missing_package_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=rf"{name} cannot be imported .*; run: pip install '\.\[comparison\]'"):
        injectors.package(f"{name}.core" if name == "pytorchfi" else name)
    monkeypatch.setattr(faults.models, "alexnet", models.lenet5)
    said = CliRunner().invoke(cli.app, ["bench", "faults", "--json"])
    assert isinstance(said.exception, MissingPackage)
    assert not said.stdout
