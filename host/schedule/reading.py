"""How jobs read a layer's input: what is loaded from where, what lies where on chip, and who reads which of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from host.program.arrangement import Plane, arrange
from host.program.layers import Layer
from hw.config import Config
from hw.layout import ceil_div


class Piece(NamedTuple):
    """Consecutive channel groups of one source that lie one after the other on chip: one load."""

    source: int
    """Position in `Layer.sources`."""
    group: int
    """The first channel group."""
    planes: int
    at: int
    """Plane on chip that the first becomes."""


class Part(NamedTuple):
    """Output groups of LANES that one job computes: group `first + g` reads from plane `plane + g // period * step`."""

    first: int
    groups: int
    plane: int
    period: int
    step: int


@dataclass(frozen=True)
class Reading:
    """How jobs read a layer's input.

    Attributes
    ----------
    planes : int
        Channel groups that lie on chip, some of them perhaps more than once.
    pieces : tuple of Piece
        The loads that bring them there.
    parts : tuple of Part
        The jobs, in the order of their output groups: usually one.
    groups_in : int
        Channel groups that each output group reads in steps of one kernel row.
    operands : int
        1; or 2 for an addition whose operands lie one after the other on chip: the second is read as a second row of
        the kernel.
    """

    planes: int
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    groups_in: int
    operands: int

    @property
    def in_order(self) -> bool:
        """Whether what lies on chip is the first source, plane by plane: as a layer before would have stored it."""
        return self.operands == 1 and len(self.pieces) == 1 and self.pieces[0][:2] == (0, 0)


@lru_cache(maxsize=4096)
def reading(layer: Layer, config: Config) -> Reading:
    """How jobs read a layer's input."""
    how = arrange(layer, config)
    # Output groups that only fill up the last stored word meet zero weights, wherever they read from.
    first = how.first[: ceil_div(layer.out_channels, config.lanes)]
    parts = _parts(first, len(how.first), max(1, config.vec // config.lanes))
    if parts is None:
        # Each output group gets a copy of what it reads.
        windows = [min(plane + z, len(how.planes) - 1) for plane in first for z in range(how.span)]
        copies = tuple(how.planes[plane] for plane in windows)
        return Reading(len(copies), _pieces(copies), (Part(0, len(how.first), 0, 1, how.span),), how.span, 1)
    pieces = _pieces(how.planes)
    even = all(n % 2 == 0 for part in parts for n in (len(how.planes), how.span, part.plane, part.step))
    if layer.operator == "add" and even and (layer.kernel, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0)):
        apart = _pieces(how.planes[0::2] + how.planes[1::2])
        # The steps of two rows of taps are those of two planes: a, b, a, b.
        if len(apart) < len(pieces):
            halves = tuple(Part(p.first, p.groups, p.plane // 2, p.period, p.step // 2) for p in parts)
            return Reading(len(how.planes), apart, halves, how.span // 2, 2)
    return Reading(len(how.planes), pieces, parts, how.span, 1)


@lru_cache(maxsize=65536)
def chunk_reading(layer: Layer, config: Config, first: int, groups: int) -> Reading:
    """How jobs read what output groups `first` to `first + groups - 1` need, and only that, each plane once."""
    how = arrange(layer, config)
    # Output groups that only fill up the last stored word meet zero weights, wherever they read from.
    real = how.first[: ceil_div(layer.out_channels, config.lanes)][first : first + groups]
    if not real:
        return Reading(1, _pieces(how.planes[:1]), (Part(first, groups, 0, 1, 0),), how.span, 1)
    low, high = min(real), min(max(real) + how.span, len(how.planes))
    parts = _parts(tuple(plane - low for plane in real), groups, 1)
    assert parts is not None
    moved = tuple(part._replace(first=first + part.first) for part in parts)
    return Reading(high - low, _pieces(how.planes[low:high]), moved, how.span, 1)


def window_pieces(layer: Layer, config: Config, group: int, z: int, planes: int) -> tuple[Piece, ...]:
    """The loads of channel groups `z` to `z + planes - 1` of an output group's window; those behind the last are left
    out (they meet zero weights)."""
    how = arrange(layer, config)
    low = how.first[group] + z
    return _pieces(how.planes[low : low + planes]) if low < len(how.planes) else ()


def _pieces(planes: tuple[Plane, ...]) -> tuple[Piece, ...]:
    starts = [0]
    for at, (before, plane) in enumerate(pairwise(planes), 1):
        if plane != (before.source, before.group + 1):
            starts.append(at)
    ends = [*starts[1:], len(planes)]
    return tuple(Piece(*planes[at], end - at, at) for at, end in zip(starts, ends, strict=True))


def _parts(first: tuple[int, ...], count: int, block: int) -> tuple[Part, ...] | None:
    """Cut `count` output groups into few jobs of whole words, which `block` groups share; None if there is no way to.

    `first` is where each reads from; those behind the last of it may read from anywhere.
    """
    parts = []
    at = 0
    while at < count:
        if at >= len(first):
            parts.append(Part(at, count - at, 0, 1, 0))
            break
        rule, end = _rule(first[at:]), count
        if rule is None:
            end = at + block
            rule = _rule(first[at:end])
            if rule is None:
                return None
            while end < count and (longer := _rule(first[at : end + block])) is not None:
                rule, end = longer, end + block
        parts.append(Part(at, end - at, first[at], *rule))
        at = end
    return tuple(parts)


def _rule(first: tuple[int, ...]) -> tuple[int, int] | None:
    """(P, S) if group g begins S planes further on for every P groups before it; None if there is no such rule."""
    period = next((g for g, plane in enumerate(first) if plane != first[0]), None)
    if period is None:
        return 1, 0
    step = first[period] - first[0]
    regular = step > 0 and all(plane == first[0] + g // period * step for g, plane in enumerate(first))
    return (period, step) if regular else None
