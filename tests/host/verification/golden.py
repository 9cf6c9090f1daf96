"""A slow interpreter of a Program's logical graph, sharing no code with the devices: channel by channel, tap by tap."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from host.program.layers import Layer, Pool
from host.program.program import Program

Int8 = npt.NDArray[np.int8]
Tensors = dict[str, npt.NDArray[np.int64]]


def forward(program: Program, x: Int8) -> tuple[Tensors, Tensors]:
    """Every layer's output before and after pooling, fault-free, shape (N, M, H, W).

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
        Unfolded.
    """
    images = x.astype(np.int64)
    first = program.layers[0]
    if first.fold is not None:
        images = _folded(images, first)
    tensors, conv = {"input": images}, {}
    for layer in program.layers:
        channels = [tensors[name][:, c] for name in layer.sources for c in range(tensors[name].shape[1])]
        if layer.channels is not None:
            channels = [channels[c] for c in layer.channels]
        weight = program.weights[layer.name].astype(np.int64)
        bias = program.biases[layer.name].astype(np.int64)
        result = [
            _pipecnn(_output(layer, channels, m, weight[m]), int(bias[m]), layer.shift[m], layer.relu, layer.upper)
            if program.config.arithmetic == "pipecnn"
            else _requantised(_output(layer, channels, m, weight[m]) + bias[m], layer.shift[m], layer.relu, layer.upper)
            for m in range(layer.out_channels)
        ]
        conv[layer.name] = np.stack(result, axis=1)
        tensors[layer.name] = conv[layer.name] if layer.pool is None else _pooled(conv[layer.name], layer.pool)
    del tensors["input"]
    return conv, tensors


def _folded(x: npt.NDArray[np.int64], layer: Layer) -> npt.NDArray[np.int64]:
    assert layer.fold is not None
    how, (n, c, h, w) = layer.fold, x.shape
    out = np.zeros((n, how.kernel_w * c, h, layer.in_shape[2]), np.int64)
    for kx in range(how.kernel_w):
        for column in range(out.shape[3]):
            at = column * how.stride_x + kx - how.pad_x
            if 0 <= at < w:
                out[:, kx * c : (kx + 1) * c, :, column] = x[:, :, :, at]
    return out


def _output(
    layer: Layer, channels: list[npt.NDArray[np.int64]], m: int, weight: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The sum of one output channel, shape (N, OH, OW)."""
    _, oh, ow = layer.conv_shape
    per_group = len(channels) // layer.groups
    group = m // (layer.out_channels // layer.groups)
    (sy, sx), (py, px) = layer.stride, layer.padding
    total = np.zeros((len(channels[0]), oh, ow), np.int64)
    for i in range(per_group):
        source = channels[group * per_group + i]
        _, h, w = source.shape
        for ky in range(layer.kernel[0]):
            for kx in range(layer.kernel[1]):
                for y in range(oh):
                    row = y * sy + ky - py
                    if not 0 <= row < h:
                        continue
                    columns = [x for x in range(ow) if 0 <= x * sx + kx - px < w]
                    total[:, y, columns] += weight[i, ky, kx] * source[:, row, [x * sx + kx - px for x in columns]]
    return total


def _requantised(acc: npt.NDArray[np.int64], shift: int, relu: bool, upper: int) -> npt.NDArray[np.int64]:
    acc = (acc + 2**31) % 2**32 - 2**31
    # Round half up, which is what adding half and flooring does.
    rounded = acc if shift == 0 else np.floor_divide(acc + 2 ** (shift - 1), 2**shift)
    rounded = np.minimum(rounded, upper)
    return np.maximum(rounded, 0 if relu else -128)


def _pipecnn(acc: npt.NDArray[np.int64], bias: int, shift: int, relu: bool, upper: int) -> npt.NDArray[np.int64]:
    """`conv_pipe.cl`: saturation looks at the sum without the bias, and adding the bias wraps."""
    acc = (acc + 2**31) % 2**32 - 2**31
    r = np.floor_divide(acc, 2 ** (shift - 1)) + 1
    wrapped = (np.floor_divide(r, 2) + bias + 128) % 256 - 128
    y = np.where(r >= 256, 127, np.where(r < -256, -128, wrapped))
    return np.minimum(np.maximum(y, 0 if relu else -128), upper)


def _pooled(x: npt.NDArray[np.int64], pool: Pool) -> npt.NDArray[np.int64]:
    _, _, h, w = x.shape

    def windows(size: int) -> list[range]:
        """Real pixels of each window, as PyTorch counts windows."""
        exact = (size + 2 * pool.pad - pool.kernel) / pool.stride
        count = (math.ceil(exact) if pool.ceil else math.floor(exact)) + 1
        starts = [at * pool.stride - pool.pad for at in range(count)]
        if pool.ceil and starts[-1] >= size:
            starts.pop()
        return [range(max(0, s), min(size, s + pool.kernel)) for s in starts]

    rows = [np.max(x[:, :, list(r)], axis=2) for r in windows(h)]
    tall = np.stack(rows, axis=2)
    return np.stack([np.max(tall[:, :, :, list(c)], axis=3) for c in windows(w)], axis=3)
