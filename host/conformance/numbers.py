"""Conversions: between float and int8, and between PyTorch's layout and the device's."""

from __future__ import annotations

import numpy as np

from host.conformance.suite import Bench, check, need


@check
def quantising_rounds_ties_up_and_saturates(bench: Bench) -> None:
    """Quantising rounds ties towards +infinity and saturates at -128 and 127."""
    x = np.array([0.5, -0.5, 0.25, -0.25, 100.0, -100.0, -64.25], np.float32)
    found, wanted = bench.device.quantise(x, 1), [1, -1, 1, 0, 127, -128, -128]
    need(found.dtype == np.int8, f"quantise gives {found.dtype}")
    need(found.tolist() == wanted, f"{x.tolist()} at 2**-1 become {found.tolist()}, not {wanted}")


@check
def dequantising_is_exact(bench: Bench) -> None:
    """Dequantising is exact at every scale, and undone by quantising."""
    every = np.arange(-128, 128).astype(np.int8)
    for frac in (-3, 0, 1, 7, 12):
        real = bench.device.dequantise(every, frac)
        need(real.dtype == np.float32, f"dequantise gives {real.dtype}")
        need(bool((real == every.astype(np.float64) * 2.0**-frac).all()), f"at 2**{-frac} it is not exact")
        need(bool((bench.device.quantise(real, frac) == every).all()), f"at 2**{-frac} quantising does not undo it")


@check
def reordering_is_undone_by_recovering(bench: Bench) -> None:
    """Reordering loses nothing: recovering gives the same tensor, for any number of channels."""
    rng = np.random.default_rng(bench.seed)
    for channels in (1, bench.config.vec, bench.config.vec + 1, 11):
        x = rng.integers(-128, 128, (2, channels, 3, 5)).astype(np.int8)
        found = bench.device.recover(bench.device.reorder(x), channels)
        need(found.shape == x.shape and bool((found == x).all()), f"{channels} channels do not survive")
