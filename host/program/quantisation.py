"""Power-of-two quantisation: `real = int * 2**-frac`, the fraction chosen by minimum squared error."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]
Int8 = npt.NDArray[np.int8]

SAMPLE = 1 << 20
"""Most values of a tensor that take part in choosing its fraction."""
CLIPPED_BITS = 4
"""How many fractions beyond the first that clips are tried: each halves the range."""


def quantise(x: Float, frac: int | npt.NDArray[np.integer]) -> Int8:
    """Float to int8 at scale `2**-frac`: ties to +infinity, saturating. `frac` broadcasts against `x`."""
    return np.clip(np.floor(np.ldexp(np.asarray(x, np.float64), frac) + 0.5), -128, 127).astype(np.int8)


def finite(x: Float) -> bool:
    """Whether no value is NaN or infinite."""
    # Such a value makes the sum so, too; the sum of many finite values may be infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not math.isfinite(x.sum())
    return not suspect or bool(np.isfinite(x).all())


def quantise_finite(x: Float, frac: int | npt.NDArray[np.integer]) -> Int8 | None:
    """`quantise`; None if a value is NaN or infinite."""
    return quantise(x, frac) if finite(x) else None


def quantise_bias(bias: Float, frac: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Float bias, shape (M,), to int32 at scale `2**-frac`, saturating."""
    limit = np.iinfo(np.int32)
    return np.clip(np.floor(np.ldexp(np.asarray(bias, np.float64), frac) + 0.5), limit.min, limit.max).astype(np.int32)


def dequantise(x: npt.NDArray[np.integer], frac: int | npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Integers at scale `2**-frac` to float32."""
    return np.ldexp(np.asarray(x, np.float64), -np.asarray(frac)).astype(np.float32)


def largest_safe_frac(x: Float) -> int | None:
    """The largest fraction at which nothing saturates by more than rounding; None where all values are zero."""
    peak = float(np.max(np.abs(x), initial=0.0))
    return None if peak == 0 else math.floor(math.log2(127.5 / peak))


def best_frac(x: Float) -> int | None:
    """Fraction with the least squared quantisation error over the values of `x`; None where all values are zero.

    Finer fractions than the largest safe one clip the tail and resolve the rest better; the search weighs the two.
    """
    values = np.asarray(x).reshape(-1)
    safe = largest_safe_frac(values)
    if safe is None:
        return None
    # A stride coprime with common extents samples all channels and positions alike.
    sample = values[:: max(1, values.size // SAMPLE) | 1].astype(np.float64)

    def error(frac: int) -> float:
        return float(np.sum((np.ldexp(quantise(sample, frac).astype(np.float64), -frac) - sample) ** 2))

    return min(range(safe, safe + CLIPPED_BITS + 1), key=error)
