"""Lanes that some operand bits reach late, or with stuck bits: what the kernels need to evaluate them step by step."""

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
from hw.layout import ceil_div
from hw.masks import BankMasks

ALL_ONES = np.uint32(0xFFFFFFFF)
Int8 = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint32]

BLOCK = 16
"""Outputs that are computed together: one word each of a register."""
IN_TIME = 0.25
"""Time of a block whose operand bits all are in time, over that of one that is computed step by step, about."""


@dataclass
class Ordered:
    """A layer's weights in the order of steps."""

    weights: Int8
    sums: npt.NDArray[np.int32]
    """-128 times those of a step, shape (blocks, steps, 16)."""
    rows: npt.NDArray[np.int32]
    """Whose they are (`Blocks.rows`)."""


class Blocks:
    """How outputs of a layer are put into blocks of 16 that read the same planes.

    Parameters
    ----------
    layer : Layer
    config : Config
    outputs : int array
        Ascending. Those behind the layer's last fill up a word of memory: the array computes them with weights of zero.

    Attributes
    ----------
    rows : int array, shape (blocks, 16)
        The output that each row computes; -1: none.
    lanes : int array, shape (blocks, 16)
        The lane that computes it.
    planes : int array, shape (blocks,)
        The first plane that each block reads.
    """

    def __init__(self, layer: Layer, config: Config, outputs: npt.NDArray[np.integer]) -> None:
        self.channels = layer.out_channels
        first = np.asarray(arrange(layer, config).first, np.int64)[outputs // config.lanes]
        rows, planes = [], []
        for plane in dict.fromkeys(first.tolist()):
            own = outputs[first == plane]
            padded = np.full(ceil_div(len(own), BLOCK) * BLOCK, -1)
            padded[: len(own)] = own
            rows.append(padded.reshape(-1, BLOCK))
            planes += [plane] * len(rows[-1])
        self.rows = np.concatenate(rows).astype(np.int32)
        self.planes = np.asarray(planes, np.int64)
        self.lanes = np.where(self.rows < 0, 0, self.rows % config.lanes)
        self.channel = self.rows[:, 0].astype(np.int64)
        following = (self.rows < 0) | (self.rows == self.rows[:, :1] + np.arange(BLOCK))
        self.count = np.where(following.all(1), (self.rows >= 0).sum(1), 0).astype(np.int64)
        places = np.flatnonzero(self.rows >= 0)
        self.place = np.full(max(self.channels, int(self.rows.max()) + 1), -1, np.int32)
        self.place[self.rows.reshape(-1)[places]] = places

    @property
    def whole(self) -> bool:
        """Whether the rows are the layer's outputs, one after the other."""
        rows = self.rows.reshape(-1)
        return np.array_equal(rows[: self.channels], np.arange(self.channels)) and bool(
            (rows[self.channels :] < 0).all()
        )

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value per output, shape (M, ...), by row, shape (blocks, 16, ...); zero where there is no such output."""
        known = (self.rows >= 0) & (self.rows < self.channels)
        found = values[np.where(known, self.rows, 0)]
        found[~known] = 0
        return found


class LateLayer:
    """One layer of a plan, prepared for lanes that miss the clock or have stuck bits.

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
        to.offsets = self._offsets.ctypes.data
        self._steps = how.span * kh * kw
        self._outputs: npt.NDArray[np.integer] | None = None
        self._banks: Mapping[str, BankMasks] | None = None
        self._parameters: tuple[npt.NDArray[np.int32], ...] = ()
        self._ordered: Ordered | None = None

    def select(self, affected: npt.NDArray[np.bool_], filled: bool) -> bool:
        """Choose the outputs to compute step by step; whether there are any.

        Parameters
        ----------
        affected : bool array, shape (LANES,)
            Lanes in which something is late or stuck. The others' outputs are left to the kernels of a clock that is
            met, unless that would take longer.
        filled : bool
            Also those behind the layer's last that fill up a word of memory.
        """
        m, config = self._layer.out_channels, self._config
        outputs = np.flatnonzero(affected[np.arange(m) % config.lanes])
        blocks = ceil_div(m, BLOCK)
        partial = ceil_div(len(outputs), BLOCK) + IN_TIME * blocks < blocks
        if not partial:
            outputs = np.arange(m)
        if filled:
            outputs = np.append(outputs, np.arange(m, ceil_div(m, config.vec) * config.vec))
        self.native.partial = int(partial)
        if self._outputs is None or not np.array_equal(outputs, self._outputs):
            self._outputs, self._banks = outputs, None
            if len(outputs):
                self._place(Blocks(self._layer, config, outputs))
        return bool(len(outputs))

    def _place(self, blocks: Blocks) -> None:
        to, self.blocks = self.native, blocks
        self._planes = blocks.planes * self._config.vec
        to.plane, to.blocks = self._planes.ctypes.data, len(blocks.rows)
        to.channel, to.count = blocks.channel.ctypes.data, blocks.count.ctypes.data
        to.rows, to.place = blocks.rows.ctypes.data, blocks.place.ctypes.data

    def order(self, weight: Int8) -> Ordered:
        """OIHW weights in the order of steps."""
        blocks = self.blocks
        if not self._in_order:
            arranged = arrange_weights(weight, self._layer, self._config)  # (outputs, span, KH, KW, VEC)
            moved = arranged.transpose(0, 1, 4, 2, 3).reshape(len(arranged), -1, *arranged.shape[2:4])
            weight = _rows(blocks.spread(moved[: blocks.channels]))
        elif not blocks.whole:
            weight = _rows(blocks.spread(weight))
        per_step = self._config.vec // 4
        packed, _ = self._kernels.pack(weight, 1, per_step)
        total = self._kernels.prefix_sums(packed, len(weight), self._steps, per_step)
        sums = -total
        sums[:, 1:] += total[:, :-1]
        return Ordered(packed, sums, blocks.rows)

    def bind(
        self,
        ordered: Ordered,
        bias: npt.NDArray[np.int32],
        shift: npt.NDArray[np.int32],
        added: npt.NDArray[np.int32],
        banks: Mapping[str, BankMasks],
    ) -> None:
        """Set weights, parameters of shape (M,) each, and the masks of the late and stuck banks."""
        to = self.native
        self._ordered = ordered
        to.weights, to.sums = ordered.weights.ctypes.data, ordered.sums.ctypes.data
        self._parameters = tuple(
            np.ascontiguousarray(self.blocks.spread(values), np.int32) for values in (bias, shift, added)
        )
        to.start, to.shift, to.added = (values.ctypes.data for values in self._parameters)
        if banks is not self._banks:
            self._banks = banks
            self._bind_masks(banks)

    def _bind_masks(self, banks: Mapping[str, BankMasks]) -> None:
        to = self.native
        self._masks: list[Words] = []
        to.groups, to.adders, to.keep, to.set = 0, None, None, None
        lanes = np.unique(self.blocks.lanes)
        bank = banks.get("accumulator")
        if bank is not None:
            if not _in_time(bank)[lanes].all():
                assert bank.bias is not None
                assert bank.select is not None
                to.masks = self._spread((bank.a, bank.s, bank.outputs, bank.bias, bank.select))
                to.groups = bank.groups
            if _stuck(bank)[lanes].any():
                to.keep, to.set = self._by_row(bank.keep), self._by_row(bank.set)
        names = [name for name in bank_names(self._config.vec) if name != "accumulator"]
        if any(affected(banks[name])[lanes].any() for name in names if name in banks):
            self._adders = (native.Adder * len(names))()
            # Level by level, as the tree is computed.
            for name, adder in zip(sorted(names, key=_level), self._adders, strict=True):
                if name not in banks or not affected(banks[name])[lanes].any():
                    continue
                bank = banks[name]
                if not _in_time(bank)[lanes].all():
                    adder.groups = bank.groups
                    adder.masks = self._spread((bank.a, bank.s, bank.outputs))
                width = bank.sign | (bank.sign - 1)
                adder.sign, adder.set = self._by_row(bank.sign), self._by_row(bank.set)
                adder.keep = self._by_row(bank.keep & width)
            to.adders = self._adders

    def _by_row(self, words: Words) -> int:
        """Words of shape (LANES,), by block and row; their address."""
        return self._kept(words[self.blocks.lanes])

    def _spread(self, words: Sequence[Words]) -> int:
        """Masks of shape (LANES, groups), by block and row; their address."""
        by_row = np.stack(words, axis=2)[self.blocks.lanes]  # (blocks, 16, groups, words)
        return self._kept(by_row.transpose(0, 2, 3, 1))

    def _kept(self, words: Words) -> int:
        self._masks.append(np.ascontiguousarray(words))
        return self._masks[-1].ctypes.data


def affected(bank: BankMasks) -> npt.NDArray[np.bool_]:
    """Lanes of a bank in which something may be late or is stuck, shape (LANES,)."""
    return ~_in_time(bank) | _stuck(bank)


def affected_lanes(banks: Mapping[str, BankMasks], lanes: int) -> npt.NDArray[np.bool_]:
    """Lanes in which something may be late or is stuck, shape (LANES,)."""
    found = np.zeros(lanes, bool)
    for bank in banks.values():
        found |= affected(bank)
    return found


def _in_time(bank: BankMasks) -> npt.NDArray[np.bool_]:
    """Lanes in which every operand bit is seen by every output bit, shape (LANES,)."""
    seen = [words for words in (bank.a, bank.s, bank.bias, bank.select) if words is not None]
    full = np.logical_and.reduce([words == ALL_ONES for words in seen])
    return np.asarray((full | (bank.outputs == 0)).all(1))


def _stuck(bank: BankMasks) -> npt.NDArray[np.bool_]:
    """Lanes that have a stuck bit, shape (LANES,)."""
    return np.asarray((bank.keep != ALL_ONES) | (bank.set != 0))


def _rows(weight: Int8) -> Int8:
    """Weights of shape (blocks, 16, C, KH, KW) as those of blocks * 16 outputs."""
    return np.ascontiguousarray(weight.reshape(-1, *weight.shape[2:]))


def _level(name: str) -> tuple[int, int]:
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
