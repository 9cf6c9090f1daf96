"""The map of device memory: where weights, tensors, descriptors and events of a launch lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.program.arrangement import weights_shape
from host.program.layers import Layer
from host.program.program import Program
from hw import params
from hw.config import Config
from hw.layout import ceil_div, output_groups


class Region(NamedTuple):
    """A piece of device memory."""

    address: int
    nbytes: int
    shape: tuple[int, ...]
    """Of the array in the device's layout: int8 elements, or parameter records."""


class MemoryMap:
    """Hands out addresses, each aligned for every kind of access the accelerator makes."""

    def __init__(self, config: Config) -> None:
        self.alignment = max(256, config.lanes * config.vec, config.lanes * params.PARAM_BYTES, config.port_bytes)
        self.end = 0
        self.regions: dict[str, Region] = {}

    def add(self, name: str, shape: tuple[int, ...], itemsize: int = 1) -> Region:
        """The next free region of that shape."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * itemsize
        region = Region(self.end, nbytes, shape)
        self.regions[name] = region
        self.end = ceil_div(self.end + nbytes, self.alignment) * self.alignment
        return region


def weights_name(layer: str) -> str:
    """Region of a layer's weights, `[M/LANES][C/VEC][KH][KW][LANES][VEC]`."""
    return f"weights/{layer}"


def params_name(layer: str) -> str:
    """Region of a layer's bias and shift records, `[M/LANES][LANES]`."""
    return f"params/{layer}"


def conv_name(layer: str) -> str:
    """Region of a layer's output before pooling, `[N][M/VEC][OH][OW][VEC]`."""
    return f"conv/{layer}"


def out_name(layer: str) -> str:
    """Region of a layer's final output, `[N][M/VEC][PH][PW][VEC]`."""
    return f"out/{layer}"


def input_name(source: str) -> str:
    """Region of a tensor that the launch reads and does not compute itself, `[N][C/VEC][H][W][VEC]`."""
    return f"in/{source}"


def weights_map(program: Program) -> MemoryMap:
    """Addresses of all layers' weights and parameters, wherever the layers are placed.

    They depend on nothing but layer shapes and configuration, so weights are written once and stay.
    """
    config = program.config
    memory = MemoryMap(config)
    for layer in program.layers:
        groups = output_groups(layer.out_channels, config.lanes, config.vec)
        memory.add(weights_name(layer.name), weights_shape(layer, config))
        memory.add(params_name(layer.name), (groups, config.lanes), params.PARAM_BYTES)
    return memory


def tensor_shape(shape: tuple[int, int, int], batch: int, vec: int) -> tuple[int, ...]:
    """(C, H, W) to the shape `[N][C/VEC][H][W][VEC]` in memory."""
    channels, h, w = shape
    return batch, ceil_div(channels, vec), h, w, vec


def conv_is_separate(layer: Layer) -> bool:
    """Whether the convolution's output differs from the final output (it is pooled)."""
    return layer.pool is not None
