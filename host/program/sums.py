"""How far a layer's 32-bit sums can reach, whatever its input: they wrap on the accelerator, and must not be let."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LIMIT = 2**31 - 1
"""Largest sum that no accumulator wraps at."""
MOST = 128 * 128
"""Largest product of two int8 values."""


def reach(weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None) -> npt.NDArray[np.int64]:
    """Bound of every running sum of each output channel, fault-free: `|bias| + 128 * sum|w|`, shape (M,).

    Parameters
    ----------
    weight : integers of int8's range, shape (M, C / groups, KH, KW)
    bias : integers, shape (M,), or None where the sum begins at zero
    """
    rows = np.abs(weight.reshape(len(weight), -1), dtype=np.int16).sum(1, dtype=np.int64) * 128
    return rows if bias is None else rows + np.abs(bias.astype(np.int64))


def overflowing(weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None) -> tuple[int, int] | None:
    """The output channel whose sums reach furthest and how far, where that is too far; otherwise None.

    A bias at int32's end was cut off there, and counts as too far.
    """
    most = 0 if bias is None else int(np.abs(bias.astype(np.int64)).max(initial=0))
    if most < LIMIT and most + weight[0].size * MOST <= LIMIT:
        return None
    found = reach(weight, bias)
    at = int(found.argmax())
    cut = most >= LIMIT
    return (at, int(found[at])) if cut or found[at] > LIMIT else None
