"""From a launch to what the kernels do: a list of layers with their feature maps, weights and faults."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from host.devices.emulator import native
from host.devices.emulator.late import LateLayer, Ordered, affected_lanes
from host.devices.emulator.maps import FeatureMap
from host.devices.emulator.memory import Params
from host.devices.emulator.native import Kernels, Tensor
from host.faults.plan import SITES, FaultPlan
from host.program.arrangement import arrange
from host.program.layers import Layer
from host.schedule import memory
from host.schedule.launch import Launch
from host.schedule.memory import Region
from host.schedule.tiling import Band
from hw.layout import ceil_div
from hw.masks import BankMasks

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

CONVOLUTION, DEPTHWISE, PAIR = range(3)
"""`Kind` of engine.h."""
BLOCK = 16
"""Outputs of one register; a group's parameters fill whole ones."""
FEW_PIXELS = 4
"""A layer with at most so many output pixels an image is computed for all images at once: they share its weights."""


@dataclass
class Packed:
    """A layer's weights in the kernels' order; `None`s are made when they are needed."""

    weights: npt.NDArray[np.int8]
    sums: Int32
    """Of each output's weights."""
    ordered: npt.NDArray[np.int8] | None = None
    """Convolutions' weights in the order of steps."""
    ordered_sums: Int32 | None = None
    rows: npt.NDArray[np.int8] | None = None
    """Plain weights in the order of steps, shape (M, steps, vec), of convolutions."""
    late: Ordered | None = None
    """The same for lanes that are late or stuck, of any layer."""


class Part(NamedTuple):
    """Consecutive channels of a source that are consecutive in a layer's input."""

    source: int
    first: int
    to: int
    channels: int


@dataclass
class Step:
    """One layer of a launch: what Python must keep alive, and change between launches."""

    layer: Layer
    kind: int
    conv: FeatureMap
    out: FeatureMap
    slots: npt.NDArray[np.int32]
    in_order: bool
    weights_region: Region
    params_region: Region
    start: Int32
    """Accumulators' first values, as the kernel takes them: groups by outputs of one, filled up to whole blocks. The
    same of the shifts, and of what PipeCNN's arithmetic adds."""
    shift: Int32
    added: Int32
    tiles: tuple[tuple[Band, Band], ...]
    """Rows and columns of the tiles that it is computed in."""
    alive: list[Any] = field(default_factory=list)
    weights: Packed | None = None
    plain: Int8 | None = None
    params: Params | None = None
    bias: Int32 | None = None
    """Accumulators' first values, shape (M,)."""
    faults: tuple[npt.NDArray[Any], ...] = ()
    late: LateLayer | None = None

    @property
    def pixels(self) -> int:
        """Output pixels of an image, before pooling."""
        _, h, w = self.layer.conv_shape
        return h * w


class Plan:
    """Everything for the launches of one schedule; they take turns in its feature maps.

    Parameters
    ----------
    launch : Launch
    kernels : Kernels
    turns : bool
        Whether the images may take turns in maps that nobody needs afterwards (they may not in several threads).
    filled : bool
        Whether channels that only fill up a word of memory are computed, too: those of lanes with stuck bits may hold
        something.
    """

    def __init__(self, launch: Launch, kernels: Kernels, *, turns: bool, filled: bool = False) -> None:
        self.memory, self.filled = launch.memory, filled
        self.batch = launch.batch
        self._kernels, self._config = kernels, launch.program.config
        layers = [launch.program.layers[at] for at in launch.positions]
        batched = {layer.name: layer.conv_shape[1] * layer.conv_shape[2] <= FEW_PIXELS for layer in layers}
        maps = _Maps(launch, kernels, layers, batched, turns, filled)
        self.inputs = {name: maps.of(name) for name in launch.inputs}
        self._maps = maps
        self.steps: list[Step] = []
        self.layers = (native.Layer * len(layers))()
        for number, (position, layer) in enumerate(zip(launch.positions, layers, strict=True)):
            step = self._step(layer, maps, self.layers[number], batched[layer.name])
            step.tiles = launch.tiles(position)
            self.steps.append(step)
        self.written = [
            (launch.memory[name], fmap)
            for step in self.steps
            for name, fmap in (
                (memory.conv_name(step.layer.name), step.conv),
                (memory.out_name(step.layer.name), step.out),
            )
            if name in launch.written
        ]

    # ---- layers

    def _step(self, layer: Layer, maps: _Maps, to: native.Layer, batched: bool) -> Step:
        config = self._config
        how = arrange(layer, config)
        sources = [maps.of(name) for name in layer.sources]
        parts = _parts(layer)
        c, h, w = layer.in_shape
        (m, oh, ow), (kh, kw) = layer.conv_shape, layer.kernel
        pairs = _operands(layer)
        kind = PAIR if pairs else DEPTHWISE if layer.groups == c == m else CONVOLUTION
        alive: list[Any] = [sources]
        if pairs:
            (source, first), (other, second) = pairs
            to.x, to.second = sources[source].from_channel(first), sources[other].from_channel(second)
        elif len(parts) == 1:
            to.x = sources[parts[0].source].from_channel(parts[0].first)
        else:
            gathered = maps.temporary(layer)
            runs = np.asarray(parts, np.int64)
            tensors = (Tensor * len(sources))(*(source.tensor for source in sources))
            alive += [gathered, runs, tensors]
            to.x, to.sources = gathered.tensor, tensors
            to.runs, to.run_count = runs.ctypes.data, len(parts)
        slots = np.ascontiguousarray(how.slots, np.int32)
        first_plane = np.asarray(how.first, np.int32)
        in_order = kind == CONVOLUTION and layer.groups == 1 and not first_plane.any() and _in_order(slots, c)
        taps = np.arange(kh)[:, None] * to.x.row + np.arange(kw) * to.x.pixel
        quads = np.arange(ceil_div(c // layer.groups, 4)) * 4
        offsets = (taps[..., None] + quads).astype(np.int32).reshape(-1)
        planes = np.arange(how.span)[:, None, None, None] * config.vec + taps[..., None]
        ordered = (planes + np.arange(config.vec // 4) * 4).astype(np.int32).reshape(-1)
        conv, out = maps.results(layer)
        alive += [first_plane, offsets, ordered]
        values = {
            "kind": kind,
            "batched": int(batched),
            "in_h": h,
            "in_w": w,
            "channels": c,
            "outputs": m,
            "groups": layer.groups,
            "out_h": oh,
            "out_w": ow,
            "kernel_h": kh,
            "kernel_w": kw,
            "stride_y": layer.stride[0],
            "stride_x": layer.stride[1],
            "pad_y": layer.padding[0],
            "pad_x": layer.padding[1],
            "offsets": offsets.ctypes.data,
            "quads": len(offsets),
            "low": 0 if layer.relu else -128,
            "upper": layer.upper,
            "pipecnn": int(config.arithmetic == "pipecnn"),
            "stored": conv.stored,
            "conv": conv.tensor,
            "out": out.tensor,
            "slots": slots.ctypes.data,
            "first": first_plane.ctypes.data,
            "planes": len(slots),
            "span": how.span,
            "lanes": config.lanes,
            "vec": config.vec,
            "in_order": int(in_order),
            "ordered_offsets": ordered.ctypes.data,
        }
        if layer.pool is not None:
            _, ph, pw = layer.out_shape
            values |= {"pool_kernel": layer.pool.kernel, "pool_stride": layer.pool.stride}
            values |= {"pool_pad": layer.pool.pad, "pool_h": ph, "pool_w": pw}
        for name, value in values.items():
            setattr(to, name, value)
        groups = layer.groups if kind == CONVOLUTION else 1
        start, shift, added = np.zeros((3, groups, ceil_div(m // groups, BLOCK) * BLOCK), np.int32)
        to.start, to.shift, to.added = start.ctypes.data, shift.ctypes.data, added.ctypes.data
        weights, params = (self.memory[name(layer.name)] for name in (memory.weights_name, memory.params_name))
        return Step(layer, kind, conv, out, slots, in_order, weights, params, start, shift, added, (), alive)

    # ---- weights and parameters

    def pack(self, step: Step, weight: Int8) -> Packed:
        """A layer's OIHW weights as its kernel reads them."""
        if step.kind == CONVOLUTION:
            return Packed(*self._kernels.pack(weight, step.layer.groups))
        # [tap or operand][output]
        flat = weight.reshape(len(weight), -1)
        return Packed(np.ascontiguousarray(flat.T), flat.sum(1, dtype=np.int32))

    def bind(self, at: int, plain: Int8, weights: Packed, params: Params) -> None:
        """Give layer `at` its weights and parameters."""
        step, to = self.steps[at], self.layers[at]
        if step.weights is weights and step.params is params:
            return
        groups, per_group = len(step.start), step.layer.out_channels // len(step.start)
        bias = np.zeros_like(params.bias) if to.pipecnn else params.bias
        # Arrays wrap, as accumulators do.
        step.start[:, :per_group] = (bias - 128 * weights.sums).reshape(groups, per_group)
        step.added[:, :per_group] = params.bias.reshape(groups, per_group)
        if step.params is None or step.params.shift is not params.shift:
            step.shift[:, :per_group] = params.shift.reshape(groups, per_group)
        step.weights, step.params, step.plain, step.bias = weights, params, plain, bias
        to.weights, to.plain, to.bias = weights.weights.ctypes.data, plain.ctypes.data, bias.ctypes.data

    # ---- faults

    def inject(self, launch: Launch, dense_from: float) -> int:
        """Set the layers' faults to a launch's; how many events the accelerator would apply.

        Layers in which more than this share of the outputs is hit are computed step by step.
        """
        for step, to in zip(self.steps, self.layers, strict=True):
            to.mac.count = to.feature.count = 0
            to.ordered, to.late, step.faults = None, None, ()
        if launch.plan is None or launch.plan.empty:
            return 0
        if launch.plan.conditions is not None:
            self._condition(launch.plan.conditions.banks(self._config))
        applied = 0
        by_place = _by_place(launch.plan.images(launch.first_image, launch.batch))
        for position, step, to in zip(launch.positions, self.steps, self.layers, strict=True):
            for site, events in (("mac", to.mac), ("feature", to.feature)):
                part = by_place.get((position, SITES.index(site)))
                if part is None:
                    continue
                columns = (part.image - launch.first_image, part.output, part.step, part.bit)
                step.faults += columns
                events.image, events.output, events.step, events.bit = (column.ctypes.data for column in columns)
                events.count = len(part)
                applied += _applied(part, site, step)
            outputs = self.batch * step.layer.out_channels * step.pixels
            clean = step.late is None or not to.late or step.late.native.partial
            if step.in_order and clean and to.mac.count > dense_from * outputs:
                self._order(step, to)
            elif step.in_order and to.mac.count:
                self._rows(step, to)
        return applied

    def _condition(self, banks: Mapping[str, BankMasks]) -> None:
        """Let all layers run on an accelerator in which these banks are late, or have stuck bits."""
        if not banks:
            return
        affected = affected_lanes(banks, self._config.lanes)
        for step, to in zip(self.steps, self.layers, strict=True):
            weights, params, plain = step.weights, step.params, step.plain
            assert weights is not None
            assert params is not None
            assert plain is not None
            if step.late is None:
                layer = step.layer
                sources = [self._maps.of(name) for name in layer.sources]

                def temporary(channels: int, layer: Layer = layer) -> FeatureMap:
                    return self._maps.temporary(layer, channels)

                step.late = LateLayer(layer, self._config, self._kernels, sources, to, step.in_order, temporary)
            if not step.late.select(affected, self.filled):
                continue
            if weights.late is None or not np.array_equal(weights.late.rows, step.late.blocks.rows):
                weights.late = step.late.order(plain)
            assert step.bias is not None
            step.late.bind(weights.late, step.bias, np.asarray(params.shift), params.bias, banks)
            to.late = ctypes.pointer(step.late.native)

    def _rows(self, step: Step, to: native.Layer) -> None:
        """Weights for walking single outputs."""
        weights, plain = step.weights, step.plain
        assert weights is not None
        assert plain is not None
        (m, c, kh, kw), vec = plain.shape, self._config.vec
        if kh * kw == 1 and c == to.span * vec:
            to.rows = plain.ctypes.data  # they lie so; keeping them with the packed ones would keep both for ever
            return
        if weights.rows is None:
            padded = np.zeros((m, to.span * vec, kh * kw), np.int8)
            padded[:, :c] = plain.reshape(m, c, kh * kw)
            weights.rows = np.ascontiguousarray(padded.reshape(m, to.span, vec, kh * kw).swapaxes(2, 3))
        to.rows = weights.rows.ctypes.data

    def _order(self, step: Step, to: native.Layer) -> None:
        weights = step.weights
        assert weights is not None
        assert step.plain is not None
        if weights.ordered is None or weights.ordered_sums is None:
            m, _, kh, kw = step.plain.shape
            per_step = self._config.vec // 4
            weights.ordered, _ = self._kernels.pack(step.plain, 1, per_step)
            weights.ordered_sums = self._kernels.prefix_sums(weights.ordered, m, to.span * kh * kw, per_step)
        to.ordered, to.ordered_sums = weights.ordered.ctypes.data, weights.ordered_sums.ctypes.data


class _Maps:
    """The feature maps of a launch: where each tensor lies, with which border, and whether images take turns in it."""

    def __init__(
        self,
        launch: Launch,
        kernels: Kernels,
        layers: list[Layer],
        batched: dict[str, bool],
        turns: bool,
        filled: bool,
    ) -> None:
        self._launch, self._kernels, self._batched, self._turns = launch, kernels, batched, turns
        self._filled = filled
        self._vec = launch.program.config.vec
        self._maps: dict[str, FeatureMap] = {}
        self._borders: dict[str, tuple[int, int]] = {}
        # Layers between two that take all images at once go image by image together.
        self._run: dict[str, int] = {}
        run = 0
        for before, layer in pairwise([None, *layers]):
            assert layer is not None
            run += before is not None and (batched[before.name] or batched[layer.name])
            self._run[layer.name] = run
        self._readers: dict[str, list[Layer]] = {}
        for layer in layers:
            for source in layer.sources:
                self._readers.setdefault(source, []).append(layer)
                old = self._borders.get(source, (0, 0))
                self._borders[source] = (max(old[0], layer.padding[0]), max(old[1], layer.padding[1]))
        for name in launch.inputs:
            self._maps[name] = self._map(launch.program.tensor_shape(name), self._borders.get(name, (0, 0)), False)

    def _map(
        self, shape: tuple[int, int, int], border: tuple[int, int], shared: bool, filled: bool = False
    ) -> FeatureMap:
        shared &= self._turns
        return FeatureMap(self._kernels, self._vec, self._launch.batch, shape, border, shared, filled)

    def of(self, source: str) -> FeatureMap:
        return self._maps[source]

    def temporary(self, layer: Layer, channels: int | None = None) -> FeatureMap:
        """Where a layer's gathered input goes."""
        c, h, w = layer.in_shape
        return self._map((channels or c, h, w), layer.padding, not self._batched[layer.name])

    def results(self, layer: Layer) -> tuple[FeatureMap, FeatureMap]:
        """Where a layer's convolution and its final output go."""
        name, written = layer.name, self._launch.written
        here = not self._batched[name]
        shared = here and memory.out_name(name) not in written
        shared &= all(self._run[reader.name] == self._run[name] for reader in self._readers.get(name, []))
        if not memory.conv_is_separate(layer):
            shared &= memory.conv_name(name) not in written
        out = self._map(layer.out_shape, self._borders.get(name, (0, 0)), shared, self._filled)
        self._maps[name] = out
        if not memory.conv_is_separate(layer):
            return out, out
        conv = self._map(layer.conv_shape, (0, 0), here and memory.conv_name(name) not in written, self._filled)
        return conv, out


def _parts(layer: Layer) -> list[Part]:
    """Where a layer's input channels lie in its sources."""
    stacked = np.arange(sum(layer.source_channels)) if layer.channels is None else np.asarray(layer.channels)
    starts = np.cumsum((0, *layer.source_channels))
    source = np.searchsorted(starts, stacked, side="right") - 1
    channel = stacked - starts[source]
    breaks = np.flatnonzero((np.diff(source) != 0) | (np.diff(channel) != 1)) + 1
    edges = [0, *breaks.tolist(), len(stacked)]
    return [Part(int(source[a]), int(channel[a]), a, b - a) for a, b in pairwise(edges)]


def _operands(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(source, first channel) of each operand of an addition whose operands' channels are consecutive; else None."""
    plain = (layer.kernel, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
    if layer.operator != "add" or not plain or layer.groups != layer.out_channels:
        return None
    if layer.in_shape[0] != 2 * layer.out_channels or layer.channels is None:
        return None
    stacked, starts = np.asarray(layer.channels), np.cumsum((0, *layer.source_channels))
    found = []
    for operand in (stacked[0::2], stacked[1::2]):
        source = np.searchsorted(starts, operand, side="right") - 1
        if (np.diff(operand) != 1).any() or (source != source[0]).any():
            return None
        found.append((int(source[0]), int(operand[0] - starts[source[0]])))
    return found[0], found[1]


def _in_order(slots: npt.NDArray[np.int32], channels: int) -> bool:
    """Whether steps read the input's channels one after the other."""
    places = np.arange(slots.size)
    return bool((slots.reshape(-1) == np.where(places < channels, places, -1)).all())


def _by_place(plan: FaultPlan) -> dict[tuple[int, int], FaultPlan]:
    """A plan's flips by layer and site, each still sorted by image, output, step."""
    code = plan.layer.astype(np.int64) * len(SITES) + plan.site
    order = np.argsort(code, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(code[order])) + 1).tolist(), len(order)]
    found = {}
    for low, high in pairwise(edges):
        if low < high:
            layer, site = divmod(int(code[order[low]]), len(SITES))
            found[layer, site] = plan.where(order[low:high])  # type: ignore[arg-type]
    return found


def _applied(part: FaultPlan, site: str, step: Step) -> int:
    """Events that a plan's flips are: what two tiles compute is hit in both."""
    if len(step.tiles) <= 1:
        return len(part)
    mac = site == "mac"
    _, height, width = step.layer.conv_shape if mac else step.layer.out_shape
    places = part.output // width % height, part.output % width
    found = 0
    for tile in step.tiles:
        hit = np.ones(len(part), bool)
        for band, at in zip(tile, places, strict=True):
            first, end = (band.conv_first, band.conv_end) if mac else (band.kept_first, band.out_end)
            hit &= (at >= first) & (at < end)
        found += int(hit.sum())
    return found
