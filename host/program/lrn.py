"""Local response normalisation across channels, on int8 and exact in its own definition; the CPU's, never the array's.

Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 3.3,
with alpha divided by the window's size as Caffe and PyTorch do: `y = x / (k + alpha / size * sum(x**2)) ** beta`, the
sum over the `size` channels around x's own, of which those that do not exist count as zero.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from host.program.layers import Layer, Normalisation

Int8 = npt.NDArray[np.int8]

FACTOR_FRAC = 24
"""Fraction of the factor that an input is multiplied by; the layer's `weight_frac`, so that `shift` holds."""
LEAST_FACTOR = 16
"""Below it rounding costs a factor more than 3 %."""
MOST_FACTOR = 1 << 54
"""Products with int8 values and their rounding fit 64 bits."""


def normalise(x: Int8, layer: Layer) -> Int8:
    """`clamp((x * factor(t) + rounding) >> shift, -128, upper)`, then ReLU, of shape (N, C, H, W).

    `t` is the sum of squares over the window, in integers; `factor(t) = round(2**24 * (k + alpha / size * t *
    2**(-2 * in_frac))**-beta)`, computed in float64; `shift = 24 + in_frac - out_frac`; rounding as everywhere, ties
    toward +infinity.
    """
    how = layer.normalisation
    assert how is not None
    squares = np.square(x.astype(np.int32))
    below = how.size // 2
    padded = np.pad(squares, ((0, 0), (below, how.size - 1 - below), (0, 0), (0, 0)))
    sums = np.zeros_like(squares)
    for at in range(how.size):
        sums += padded[:, at : at + x.shape[1]]
    products = x.astype(np.int64) * factors(how, layer.in_frac, int(sums.max(initial=0)))[sums]
    shift = layer.shift[0]
    rounded = (products + ((1 << shift) >> 1)) >> shift
    return np.clip(rounded, 0 if layer.relu else -128, layer.upper).astype(np.int8)


def ends(how: Normalisation, in_frac: int) -> tuple[float, float]:
    """`factor(t)`, not rounded, for the least and the largest sum of squares; it is monotone between them."""
    largest = math.ldexp(how.size * 128.0**2, -2 * in_frac)
    try:
        return tuple(  # type: ignore[return-value]
            math.ldexp((how.k + how.alpha / how.size * sums) ** -how.beta, FACTOR_FRAC) for sums in (0.0, largest)
        )
    except OverflowError:
        return math.inf, math.inf


def factors(how: Normalisation, in_frac: int, largest: int) -> npt.NDArray[np.int64]:
    """`factor(t)` for t from 0 to `largest`."""
    sums = np.ldexp(np.arange(largest + 1, dtype=np.float64), -2 * in_frac)
    return np.rint(np.ldexp((how.k + how.alpha / how.size * sums) ** -how.beta, FACTOR_FRAC)).astype(np.int64)
