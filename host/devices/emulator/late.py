"""Layers under a clock that some operand bits miss: what the kernels need to evaluate lanes step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from host.devices.emulator import native
from host.devices.emulator.maps import FeatureMap
from host.devices.emulator.native import Kernels, Tensor
from host.program.arrangement import arrange, arrange_weights
from host.program.layers import Layer
from hw.config import Config
from hw.delays import bank_names
from hw.masks import BankMasks

Int8 = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint32]

BLOCK = 16
"""Outputs that are computed together: one word each of a register."""


@dataclass
class Ordered:
    """A layer's weights in the order of steps."""

    weights: Int8
    sums: npt.NDArray[np.int32]
    """-128 times those of a step, shape (blocks, steps, 16)."""


class Blocks:
    """How a layer's outputs are cut into blocks of 16 that read the same planes.

    Attributes
    ----------
    rows : int array, shape (blocks, 16)
        The output that each row computes; -1: none.
    planes : list of int
        The first plane that each block reads.
    """

    def __init__(self, layer: Layer, config: Config) -> None:
        m, first = layer.out_channels, np.asarray(arrange(layer, config).first)
        # Lanes whose group reads other planes than the next need blocks of their own.
        width = BLOCK if not first.any() else min(BLOCK, config.lanes)
        starts = np.arange(0, m, width)
        rows = starts[:, None] + np.arange(BLOCK)
        rows[(np.arange(BLOCK)[None] >= width) | (rows >= m)] = -1
        self.rows = rows
        self.lanes = np.where(rows < 0, 0, rows % config.lanes)
        self.planes = [int(first[start // config.lanes]) for start in starts]
        self.channel = starts.astype(np.int64)
        self.count = (rows >= 0).sum(1).astype(np.int64)

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """One value per output, shape (M,), by row."""
        return np.where(self.rows < 0, 0, values[self.rows]).astype(np.int32)


class LateLayer:
    """One layer of a plan, prepared for a late clock.

    Parameters
    ----------
    layer : Layer
    config : Config
    kernels : Kernels
    sources : list of FeatureMap
        What it reads.
    own : native.Layer
        Of the plan.
    in_order : bool
        Whether steps read the layer's own input channel after channel; otherwise the planes are gathered.
    temporary : callable (channels) -> FeatureMap
        Makes room for the gathered planes.
    """

    def __init__(
        self,
        layer: Layer,
        config: Config,
        kernels: Kernels,
        sources: Sequence[FeatureMap],
        own: native.Layer,
        in_order: bool,
        temporary: Any,
    ) -> None:
        self._layer, self._config, self._kernels, self._in_order = layer, config, kernels, in_order
        self.blocks = Blocks(layer, config)
        self.native = to = native.Late()
        how, (kh, kw) = arrange(layer, config), layer.kernel
        if in_order:
            to.x = own.x
        else:
            planes = max(len(how.planes), max(how.first) + how.span)
            self._map = temporary(planes * config.vec)
            self._runs = _runs(layer, how.slots)
            self._tensors = (Tensor * len(sources))(*(source.tensor for source in sources))
            to.x, to.sources = self._map.tensor, self._tensors
            to.runs, to.run_count = self._runs.ctypes.data, len(self._runs)
        taps = np.arange(kh)[:, None] * to.x.row + np.arange(kw) * to.x.pixel
        z = np.arange(how.span)[:, None, None, None] * config.vec
        self._offsets = (z + taps[..., None] + np.arange(config.vec // 4) * 4).astype(np.int32).reshape(-1)
        self._planes = np.asarray(self.blocks.planes, np.int64) * config.vec
        to.offsets, to.plane = self._offsets.ctypes.data, self._planes.ctypes.data
        to.channel, to.count = self.blocks.channel.ctypes.data, self.blocks.count.ctypes.data
        to.blocks = len(self.blocks.rows)
        self._steps = how.span * kh * kw
        self._banks: Mapping[str, BankMasks] | None = None
        self._parameters: tuple[npt.NDArray[np.int32], ...] = ()
        self._ordered: Ordered | None = None

    def order(self, weight: Int8) -> Ordered:
        """OIHW weights in the order of steps."""
        blocks = self.blocks
        if not self._in_order:
            arranged = arrange_weights(weight, self._layer, self._config)  # (outputs, span, KH, KW, VEC)
            rows = blocks.rows.reshape(-1)
            moved = arranged.transpose(0, 1, 4, 2, 3).reshape(len(arranged), -1, *arranged.shape[2:4])
            weight = np.ascontiguousarray(np.where((rows < 0)[:, None, None, None], 0, moved[rows]))
        per_step = self._config.vec // 4
        packed, _ = self._kernels.pack(weight, 1, per_step)
        total = self._kernels.prefix_sums(packed, len(weight), self._steps, per_step)
        sums = -total
        sums[:, 1:] += total[:, :-1]
        return Ordered(packed, sums)

    def bind(
        self,
        ordered: Ordered,
        bias: npt.NDArray[np.int32],
        shift: npt.NDArray[np.int32],
        added: npt.NDArray[np.int32],
        banks: Mapping[str, BankMasks],
    ) -> None:
        """Set weights, parameters of shape (M,) each, and the masks of the late banks."""
        to = self.native
        self._ordered = ordered
        to.weights, to.sums = ordered.weights.ctypes.data, ordered.sums.ctypes.data
        self._parameters = tuple(self.blocks.spread(values) for values in (bias, shift, added))
        to.start, to.shift, to.added = (values.ctypes.data for values in self._parameters)
        if banks is not self._banks:
            self._banks = banks
            self._bind_masks(banks)

    def _bind_masks(self, banks: Mapping[str, BankMasks]) -> None:
        to, lanes = self.native, self.blocks.lanes
        self._masks: list[Words] = []
        late = banks.get("accumulator")
        to.groups, to.adders = 0, None
        if late is not None:
            assert late.bias is not None
            assert late.select is not None
            to.masks = self._spread((late.a, late.s, late.outputs, late.bias, late.select))
            to.groups = late.groups
        names = [name for name in bank_names(self._config.vec) if name != "accumulator"]
        if any(name in banks for name in names):
            self._adders = (native.Adder * len(names))()
            # Level by level, as the tree is computed.
            for name, adder in zip(sorted(names, key=_place), self._adders, strict=True):
                if name in banks:
                    bank = banks[name]
                    adder.groups = bank.groups
                    adder.masks = self._spread((bank.a, bank.s, bank.outputs))
                    sign = np.ascontiguousarray(bank.sign[lanes])
                    self._masks.append(sign)
                    adder.sign = sign.ctypes.data
            to.adders = self._adders

    def _spread(self, words: Sequence[Words]) -> int:
        """Masks of shape (LANES, groups), by block and row; their address."""
        by_row = np.stack(words, axis=2)[self.blocks.lanes]  # (blocks, 16, groups, words)
        masks = np.ascontiguousarray(by_row.transpose(0, 2, 3, 1))
        self._masks.append(masks)
        return masks.ctypes.data


def _place(name: str) -> tuple[int, int]:
    _, depth, index = name.split("_")
    return int(depth), int(index)


def _runs(layer: Layer, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Runs of engine.h that fill planes from a layer's sources."""
    flat = slots.reshape(-1)
    places = np.flatnonzero(flat >= 0)
    stacked = flat[places] if layer.channels is None else np.asarray(layer.channels)[flat[places]]
    starts = np.cumsum((0, *layer.source_channels))
    source = np.searchsorted(starts, stacked, side="right") - 1
    channel = stacked - starts[source]
    apart = (np.diff(source) != 0) | (np.diff(channel) != 1) | (np.diff(places) != 1)
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(places)]
    return np.asarray([(source[a], channel[a], places[a], b - a) for a, b in pairwise(edges)], np.int64)
