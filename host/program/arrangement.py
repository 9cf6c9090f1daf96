"""Arrangement: which channel groups of its sources a layer reads, in which order, and which of them each output needs.

Shared by the compiler, the scheduler, every device and the fault space: the order of channel groups is the order of
steps (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.program.layers import Layer
from hw.config import Config
from hw.layout import output_groups


class Plane(NamedTuple):
    """One channel group of VEC of a source."""

    source: int
    """Position in `Layer.sources`."""
    group: int


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How a layer's input channels lie in the channel groups (planes) that the array reads.

    Attributes
    ----------
    planes : tuple of Plane
        In the order in which they lie on chip, and steps read them.
    slots : int array, shape (len(planes), VEC)
        Position in the layer's input of the channel in each element of each plane; -1 where the layer does not read it
        (its weights are zero).
    first : tuple of int
        First plane that each output group of LANES reads.
    span : int
        Planes that an output group reads, the same for all: its steps run over planes `first` to `first + span - 1`. At
        the end that may be beyond the last plane: whatever lies there meets zero weights.
    """

    planes: tuple[Plane, ...]
    slots: npt.NDArray[np.int64]
    first: tuple[int, ...]
    span: int

    @property
    def period(self) -> tuple[int, int] | None:
        """(P, S) if output group g begins at plane `g // P * S`; None if there is no such rule. (1, 0): all at 0."""
        later = next((g for g, plane in enumerate(self.first) if plane), None)
        if later is None:
            return 1, 0
        step = self.first[later]
        return (later, step) if all(p == g // later * step for g, p in enumerate(self.first)) else None


def steps(layer: Layer, config: Config) -> int:
    """Accumulation steps per output: planes of an output group, times the kernel's taps."""
    return arrange(layer, config).span * layer.kernel[0] * layer.kernel[1]


def arrange(layer: Layer, config: Config) -> Arrangement:
    """The arrangement of a layer on an accelerator; depends on LANES and VEC only."""
    shape = (layer.source_channels, layer.channels, layer.groups, layer.out_channels, layer.in_shape[0])
    return _arrange(*shape, config.lanes, config.vec)


@lru_cache(maxsize=4096)
def _arrange(
    source_channels: tuple[int, ...],
    channels: tuple[int, ...] | None,
    groups: int,
    out_channels: int,
    in_channels: int,
    lanes: int,
    vec: int,
) -> Arrangement:
    # Where each input channel lies.
    chosen = np.arange(in_channels) if channels is None else np.asarray(channels, np.int64)
    starts = np.cumsum((0, *source_channels))
    source = np.searchsorted(starts, chosen, side="right") - 1
    group, element = np.divmod(chosen - starts[source], vec)
    plane_of = [Plane(int(s), int(g)) for s, g in zip(source, group, strict=True)]

    # Planes in the order in which output groups need them first; within one output group by channel group, so that
    # the operands of an addition lie side by side.
    count = output_groups(out_channels, lanes, vec)
    per_group = in_channels // groups
    order: dict[Plane, int] = {}
    needs: list[set[Plane]] = []
    for at in range(count):
        first_out, end_out = at * lanes, min((at + 1) * lanes, out_channels)
        if first_out >= end_out:
            needs.append(set())
            continue
        first_in = first_out * groups // out_channels * per_group
        end_in = ((end_out - 1) * groups // out_channels + 1) * per_group
        needed = set(plane_of[first_in:end_in])
        needs.append(needed)
        if groups == 1 and at:
            continue
        by = sorted(needed) if groups == 1 else sorted(needed, key=lambda plane: (plane.group, plane.source))
        for plane in by:
            order.setdefault(plane, len(order))

    intervals = [(min(order[p] for p in n), max(order[p] for p in n)) if n else None for n in needs]
    span = max(high - low + 1 for low, high in filter(None, intervals))
    first = _windows(intervals, span, len(order))
    slots = np.full((len(order), vec), -1, np.int64)
    rows = np.asarray([order[plane] for plane in plane_of])
    # A channel that the layer reads twice would need two places.
    if len({(int(r), int(e)) for r, e in zip(rows, element, strict=True)}) != len(rows):
        raise ValueError("a layer reads one channel twice")
    slots[rows, element] = np.arange(in_channels)
    slots.setflags(write=False)
    return Arrangement(tuple(order), slots, first, span)


def _windows(intervals: list[tuple[int, int] | None], span: int, planes: int) -> tuple[int, ...]:
    """First plane of each output group: by a regular rule where one covers all intervals, else its own."""
    count = len(intervals)
    if span == planes:
        return (0,) * count
    for period in range(1, count):
        for step in range(1, span + 1):
            rule = tuple(g // period * step for g in range(count))
            if all(i is None or (r <= i[0] and i[1] < r + span) for r, i in zip(rule, intervals, strict=True)):
                return rule
    return tuple(0 if i is None else max(0, min(i[0], planes - span)) for i in intervals)


def arrange_features(x: npt.NDArray[np.int8], layer: Layer, config: Config) -> npt.NDArray[np.int8]:
    """A layer's input to the planes that steps read, shape (N, planes, H, W, VEC).

    Planes are as many as output groups reach, and elements that the layer does not read are zero.

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
        The channels chosen, in their order.
    """
    how = arrange(layer, config)
    n, _, h, w = x.shape
    planes = max(len(how.planes), max(how.first) + how.span)
    arranged = np.zeros((n, planes, config.vec, h, w), np.int8)
    plane, element = np.nonzero(how.slots >= 0)
    arranged[:, plane, element] = x[:, how.slots[plane, element]]
    return np.ascontiguousarray(arranged.transpose(0, 1, 3, 4, 2))


def arrange_weights(weight: npt.NDArray[np.int8], layer: Layer, config: Config) -> npt.NDArray[np.int8]:
    """OIHW weights to those of every step, shape (groups_out * LANES, span, KH, KW, VEC), zeros where nothing is read.

    Parameters
    ----------
    weight : int8 array, shape (M, C / groups, KH, KW)
    """
    how = arrange(layer, config)
    m, per_group, kh, kw = weight.shape
    arranged = np.zeros((len(how.first) * config.lanes, how.span, kh, kw, config.vec), np.int8)
    padded = np.full((len(how.planes) + how.span + max(how.first), config.vec), -1, np.int64)
    padded[: len(how.slots)] = how.slots
    for at, low in enumerate(how.first):
        outputs = np.arange(at * config.lanes, min((at + 1) * config.lanes, m))
        if not len(outputs):
            continue
        window = padded[low : low + how.span]
        group = outputs * layer.groups // layer.out_channels
        inside = window - group[:, None, None] * per_group
        real = (window >= 0) & (inside >= 0) & (inside < per_group)
        taken = weight[outputs[:, None, None], np.where(real, inside, 0)]  # (lanes, span, vec, kh, kw)
        taken = np.where(real[..., None, None], taken, 0)
        arranged[outputs] = taken.transpose(0, 1, 3, 4, 2)
    return arranged


def pack_weights(weight: npt.NDArray[np.int8], layer: Layer, config: Config) -> npt.NDArray[np.int8]:
    """OIHW weights as they lie in memory: `[M/LANES][span][KH][KW][LANES][VEC]`."""
    arranged = arrange_weights(weight, layer, config)
    blocks = arranged.reshape(-1, config.lanes, *arranged.shape[1:])
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 4, 1, 5))


def unpack_weights(packed: npt.NDArray[np.int8], layer: Layer, config: Config) -> npt.NDArray[np.int8]:
    """Packed weights back to OIHW; the inverse of `pack_weights`."""
    how = arrange(layer, config)
    m, per_group, kh, kw = layer.weight_shape
    arranged = packed.transpose(0, 4, 1, 2, 3, 5).reshape(-1, how.span, kh, kw, config.vec)
    channel = np.arange(m)[:, None] * layer.groups // m * per_group + np.arange(per_group)
    place = np.empty(layer.in_shape[0], np.int64)
    flat = how.slots.reshape(-1)
    place[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    plane, element = np.divmod(place[channel], config.vec)
    first = np.asarray(how.first)[np.arange(m) // config.lanes]
    return np.ascontiguousarray(arranged[np.arange(m)[:, None], plane - first[:, None], :, :, element])


def weights_shape(layer: Layer, config: Config) -> tuple[int, ...]:
    """Shape of the packed weights."""
    groups = output_groups(layer.out_channels, config.lanes, config.vec)
    return groups, arrange(layer, config).span, *layer.kernel, config.lanes, config.vec


def gather(tensors: Mapping[str, npt.NDArray[np.int8]], layer: Layer) -> npt.NDArray[np.int8]:
    """A layer's input, shape (N, C, H, W): the channels that it chooses from its sources' tensors."""
    whole = [tensors[name] for name in layer.sources]
    stacked = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1)
    return stacked if layer.channels is None else np.ascontiguousarray(stacked[:, list(layer.channels)])
