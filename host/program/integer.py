"""The accelerator's arithmetic on whole tensors: convolve exactly, requantise, pool."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from host.program import lrn, pipecnn
from host.program.layers import Layer, Pool
from host.program.rounding import shift_half_up

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]


class LayerOutputs(NamedTuple):
    """What one layer produced."""

    conv: Int8
    """After requantisation and ReLU, before pooling, shape (N, M, OH, OW)."""
    out: Int8
    """Final output, shape (N, M, PH, PW)."""


def accumulate(
    x: Int8, weight: Int8, bias: Int32, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> Int32:
    """Convolution with the accumulator starting at the bias, wrapping in 32 bits.

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
    weight : int8 array, shape (M, C / groups, KH, KW)
    bias : int32 array, shape (M,)
    stride, padding : (vertical, horizontal)

    Returns
    -------
    int32 array, shape (N, M, OH, OW)
    """
    # float64 holds every sum of int8 products exactly up to 2**53, far beyond any kernel; float32 would not.
    sums = F.conv2d(
        torch.from_numpy(np.ascontiguousarray(x, np.float64)),
        torch.from_numpy(np.ascontiguousarray(weight, np.float64)),
        stride=stride,
        padding=padding,
        groups=groups,
    )
    return wrap(sums.numpy().astype(np.int64) + bias.astype(np.int64)[:, None, None])


def wrap(x: npt.NDArray[np.int64]) -> Int32:
    """The low 32 bits, as two's complement."""
    return (x & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def requantise(acc: Int32, shift: npt.NDArray[np.integer], relu: bool, upper: int = 127) -> Int8:
    """`clamp((acc + (1 << (s-1))) >> s, -128, upper)`, ties toward +infinity, then ReLU.

    Parameters
    ----------
    acc : int32 array, shape (..., M, H, W)
    shift : integer array, shape (M,), 0 to 31
    relu : bool
    upper : int
        Largest output, 0 to 127.

    Returns
    -------
    int8 array of the shape of `acc`
    """
    return np.clip(shift_half_up(acc, shift[:, None, None]), 0 if relu else -128, upper).astype(np.int8)


def max_pool(x: Int8, pool: Pool) -> Int8:
    """Max pooling with a border of -infinity; shape (N, M, H, W) to (N, M, PH, PW)."""
    # Every window holds at least one real pixel (pad < kernel), so -128 stands for -infinity.
    rows, columns = pool.out(x.shape[2]), pool.out(x.shape[3])
    beyond = [
        max(pool.pad, (windows - 1) * pool.stride + pool.kernel - pool.pad - size)
        for windows, size in ((rows, x.shape[2]), (columns, x.shape[3]))
    ]
    width = ((0, 0), (0, 0), (pool.pad, beyond[0]), (pool.pad, beyond[1]))
    padded = np.pad(x, width, constant_values=-128) if pool.pad or any(beyond) else x
    result: Int8 | None = None
    for dy in range(pool.kernel):
        for dx in range(pool.kernel):
            tap = padded[
                :,
                :,
                dy : dy + (rows - 1) * pool.stride + 1 : pool.stride,
                dx : dx + (columns - 1) * pool.stride + 1 : pool.stride,
            ]
            result = tap.copy() if result is None else np.maximum(result, tap, out=result)
    assert result is not None
    return result


def finish(
    acc: Int32, layer: Layer, shift: npt.NDArray[np.integer] | None = None, added: Int32 | None = None
) -> LayerOutputs:
    """Requantise, ReLU and pool a layer's accumulators, shape (N, M, OH, OW).

    `added` is the stored bias in PipeCNN's arithmetic, whose accumulators begin at zero; otherwise None.
    """
    s = np.asarray(layer.shift if shift is None else shift)
    if added is None:
        conv = requantise(acc, s, layer.relu, layer.upper)
    else:
        conv = pipecnn.requantise(acc, s, added, layer.relu, layer.upper)
    return LayerOutputs(conv, conv if layer.pool is None else max_pool(conv, layer.pool))


def run_layer(x: Int8, weight: Int8, bias: Int32, layer: Layer, arithmetic: str = "redline") -> LayerOutputs:
    """One layer, fault-free, on int8 input of shape (N, *layer.in_shape); `arithmetic` as in `hw.config.Config`."""
    if layer.operator == "lrn":
        conv = lrn.normalise(x, layer)
        return LayerOutputs(conv, conv if layer.pool is None else max_pool(conv, layer.pool))
    added = bias if arithmetic == "pipecnn" else None
    start = bias if added is None else np.zeros_like(bias)
    return finish(accumulate(x, weight, start, layer.stride, layer.padding, layer.groups), layer, added=added)
