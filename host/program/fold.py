"""Tap folding: a first layer's kernel columns become input channels, so that few channels still fill the vector."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from host.program.layers import Fold, Layer
from hw.layout import ceil_div

Scalar = TypeVar("Scalar", bound=np.generic)


def worth_folding(channels: int, kernel_w: int, vec: int) -> bool:
    """Whether folding saves steps: it does when the folded channels take fewer vectors than the taps did."""
    return channels < vec and kernel_w > 1 and ceil_div(channels * kernel_w, vec) < kernel_w


def fold_columns(fold: Fold) -> int:
    """Columns of the folded input: one an output column."""
    return (fold.width + 2 * fold.pad_x - fold.kernel_w) // fold.stride_x + 1


def folded(layer: Layer, vec: int) -> Layer:
    """The layer with its kernel columns folded into channels, or as it is where that saves nothing."""
    channels, height, width = layer.in_shape
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    if not worth_folding(channels, kw, vec) or px >= kw:
        return layer
    how = Fold(channels, width, kw, sx, px)
    shape = (kw * channels, height, fold_columns(how))
    return replace(layer, in_shape=shape, source_channels=(), kernel=(kh, 1), stride=(sy, 1), padding=(py, 0), fold=how)


def fold_features(x: npt.NDArray[Scalar], fold: Fold) -> npt.NDArray[Scalar]:
    """Network input to the folded input: channel `kx*C + c` at (y, x) is `x[c, y, x*stride_x + kx - pad_x]`.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    fold : Fold

    Returns
    -------
    array of the same dtype, shape (N, KW*C, H, OW)
    """
    n, c, h, _ = x.shape
    columns = fold_columns(fold)
    padded = np.zeros((n, c, h, fold.width + 2 * fold.pad_x), x.dtype)
    padded[..., fold.pad_x : fold.pad_x + fold.width] = x
    span = (columns - 1) * fold.stride_x + 1
    taps = np.empty((n, fold.kernel_w, c, h, columns), x.dtype)
    for kx in range(fold.kernel_w):
        taps[:, kx] = padded[..., kx : kx + span : fold.stride_x]
    return taps.reshape(n, fold.kernel_w * c, h, columns)


def fold_weights(weight: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """OIHW weights, shape (M, C, KH, KW), to those of the folded layer, shape (M, KW*C, KH, 1)."""
    m, c, kh, kw = weight.shape
    return np.ascontiguousarray(weight.transpose(0, 3, 1, 2).reshape(m, kw * c, kh, 1))


def unfold_weights(weight: npt.NDArray[Scalar], fold: Fold) -> npt.NDArray[Scalar]:
    """Folded weights back to OIHW; the inverse of `fold_weights`."""
    m, _, kh, _ = weight.shape
    return np.ascontiguousarray(weight.reshape(m, fold.kernel_w, fold.channels, kh).transpose(0, 2, 3, 1))
