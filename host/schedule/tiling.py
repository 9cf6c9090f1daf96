"""Tiling: a layer that does not fit on chip is computed in tiles, from memory to memory.

Tiles are bands of rows; where these do not fit, bands of columns and groups of output channels, too; and where not even
the window of one output fits, every output by itself, its reduction in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from host.program.arrangement import arrange, steps
from host.program.layers import Layer, Pool
from host.schedule.reading import chunk_reading, reading
from hw.config import Config
from hw.layout import ceil_div

MAX_TAPS = 255
"""Kernel rows or columns of one job: the descriptor's fields have 8 bits."""
MOST_EFFORT = 3
"""That of a layer computed output by output (`effort`)."""
DESCRIPTOR_COST = 64
"""Cycles that a further descriptor costs, for comparing tilings."""


class Band(NamedTuple):
    """The part of one axis (rows or columns) of an image that a job reads and computes; usually all of it.

    With pooling, neighbouring bands share positions of the convolution: each computes those that its own windows need.
    With a padded pooling window, a band also begins with pooled positions whose windows lack what lies before: memory
    must get those from the band before, which therefore comes later.
    """

    in_first: int
    in_size: int
    pad: int
    """Zeros before the first input; after the last, zeros follow only at the layer's own edge."""
    conv_first: int
    conv_size: int
    out_first: int
    out_size: int
    """Final positions, the incomplete ones at the beginning included."""
    kept_first: int
    """First final position that is complete."""

    @property
    def conv_end(self) -> int:
        """The position of the convolution after the last."""
        return self.conv_first + self.conv_size

    @property
    def out_end(self) -> int:
        """The final position after the last."""
        return self.out_first + self.out_size


class Axis(NamedTuple):
    """What a layer does along one axis, rows or columns."""

    size: int
    kernel: int
    stride: int
    pad: int
    conv: int
    out: int
    pool: Pool | None


def row_axis(layer: Layer) -> Axis:
    """Along the rows."""
    return _axis(layer, 0)


def column_axis(layer: Layer) -> Axis:
    """Along the columns."""
    return _axis(layer, 1)


def _axis(layer: Layer, at: int) -> Axis:
    sizes = layer.in_shape[1 + at], layer.kernel[at], layer.stride[at], layer.padding[at]
    return Axis(*sizes, layer.conv_shape[1 + at], layer.out_shape[1 + at], layer.pool)


def whole(axis: Axis) -> Band:
    """All of it."""
    return Band(0, axis.size, axis.pad, 0, axis.conv, 0, axis.out, 0)


def band(axis: Axis, first: int, end: int) -> Band:
    """The band that computes final positions `first` to `end - 1`; each of the convolution lies in some band."""
    out_first, conv_first, conv_end = first, first, end
    if axis.pool is not None:
        pool = axis.pool
        # The border of -infinity before a band's first window stands for positions that the band must not lack.
        out_first = max(0, first - ceil_div(pool.pad, pool.stride))
        conv_first = out_first * pool.stride
        windows_end = (end - 1) * pool.stride - pool.pad + pool.kernel
        # Positions between windows and after the last are computed too: they may be written back, and hit by faults.
        conv_end = axis.conv if end == axis.out else min(axis.conv, max(windows_end, end * pool.stride))
    low = conv_first * axis.stride - axis.pad
    high = (conv_end - 1) * axis.stride - axis.pad + axis.kernel
    in_first = max(0, low)
    return Band(
        in_first=in_first,
        in_size=min(axis.size, high) - in_first,
        pad=in_first - low,
        conv_first=conv_first,
        conv_size=conv_end - conv_first,
        out_first=out_first,
        out_size=end - out_first,
        kept_first=first,
    )


@lru_cache(maxsize=65536)
def cut(axis: Axis, size: int) -> tuple[Band, ...]:
    """Bands of `size` final positions each, the last perhaps of fewer, in the order of computing."""
    if size >= axis.out:
        return (whole(axis),)
    made = tuple(band(axis, first, min(axis.out, first + size)) for first in range(0, axis.out, size))
    return made[::-1] if axis.pool is not None and axis.pool.pad > 0 else made


class Tile(NamedTuple):
    """What jobs of a tiled layer compute of one image."""

    rows: Band
    columns: Band
    first_group: int
    """The first output group of LANES channels."""
    groups: int


class Taps(NamedTuple):
    """A part of the reduction: consecutive steps that are a box of channel groups, kernel rows and kernel columns."""

    first_step: int
    z: int
    planes: int
    ky: int
    rows: int
    kx: int
    columns: int

    @property
    def steps(self) -> int:
        """Steps of the part."""
        return self.planes * self.rows * self.columns


class Tiling(NamedTuple):
    """How a layer is computed that does not fit on chip.

    Attributes
    ----------
    tiles : tuple of Tile
        In the order of computing.
    in_bands : bool
        Tiles are bands of rows, which read all that the layer reads (`reading`); otherwise only what their output
        groups need (`chunk_reading`).
    parts : tuple of Taps
        Usually empty. Otherwise each output of a tile is computed by jobs of its own, one a part of its reduction.
    """

    tiles: tuple[Tile, ...]
    in_bands: bool = False
    parts: tuple[Taps, ...] = ()


def layer_words(layer: Layer, config: Config) -> int:
    """Words of VEC bytes that one image's input takes on chip, all channel groups that the layer reads."""
    return band_words(layer, layer.in_shape[1], config)


def band_words(layer: Layer, rows: int, config: Config) -> int:
    """Words that `rows` input rows of one image take on chip."""
    return reading(layer, config).planes * rows * layer.in_shape[2]


def fits_on_chip(layer: Layer, config: Config) -> bool:
    """Whether one job computes all of an image; otherwise the layer is tiled."""
    small = max(layer.kernel) <= MAX_TAPS and _rows_can_be_pooled(layer, layer.out_shape[2], config)
    return small and layer_words(layer, config) <= config.feature_words


def _rows_can_be_pooled(layer: Layer, columns: int, config: Config) -> bool:
    return layer.pool is None or columns <= config.pool_columns


def effort(layer: Layer, config: Config) -> int:
    """How much a layer must be cut: 0 not at all, 1 in bands of rows, 2 in smaller tiles, 3 output by output."""
    if fits_on_chip(layer, config):
        return 0
    how = tiling(layer, config)
    return MOST_EFFORT if how.parts else 1 if how.in_bands else 2


@lru_cache(maxsize=4096)
def tiling(layer: Layer, config: Config) -> Tiling:
    """How to compute a layer that does not fit on chip. There is always a way."""
    rows = _in_bands(layer, config)
    if rows is not None:
        groups = len(arrange(layer, config).first)
        return Tiling(tuple(Tile(b, whole(column_axis(layer)), 0, groups) for b in rows), in_bands=True)
    return _in_tiles(layer, config) or _by_output(layer, config)


def column_bands(layer: Layer, config: Config) -> tuple[Band, ...]:
    """The columns at which tiles cut a layer, in the order of computing; usually one band with all of them.

    A layer whose outputs are computed one by one is whole: what tiles share is the same in all.
    """
    if fits_on_chip(layer, config) or (how := tiling(layer, config)).parts:
        return (whole(column_axis(layer)),)
    return tuple(dict.fromkeys(tile.columns for tile in how.tiles))


def parts(layer: Layer, config: Config) -> tuple[Taps, ...]:
    """The parts in which each output of a layer is computed by jobs of its own; () if it is not."""
    return () if fits_on_chip(layer, config) else tiling(layer, config).parts


def _in_bands(layer: Layer, config: Config) -> tuple[Band, ...] | None:
    """The fewest bands of rows that fit, of nearly equal height; None if not even bands of one final row do."""
    _, _, width = layer.out_shape
    if max(layer.kernel) > MAX_TAPS or not _rows_can_be_pooled(layer, width, config):
        return None
    return _fewest(row_axis(layer), config.feature_words // (reading(layer, config).planes * layer.in_shape[2]))


def _fewest(axis: Axis, room: int) -> tuple[Band, ...] | None:
    """The fewest bands of at most `room` inputs each, of nearly equal size; None if there are none."""

    def fits(size: int) -> bool:
        return max(b.in_size for b in cut(axis, size)) <= room

    low, high = 0, axis.out
    while low < high:
        size = (low + high + 1) // 2
        if fits(size):
            low = size
        else:
            high = size - 1
    if low == 0:
        return None
    even = ceil_div(axis.out, ceil_div(axis.out, low))
    return cut(axis, even if fits(even) else low)


def _in_tiles(layer: Layer, config: Config) -> Tiling | None:
    """Tiles that fit, of the shape that takes the fewest cycles by a rough estimate; None if not even the smallest do.

    Output groups are only told apart where they read different channel groups.
    """
    if max(layer.kernel) > MAX_TAPS:
        return None
    how, taken = arrange(layer, config), steps(layer, config)
    count = len(how.first)
    column, row = column_axis(layer), row_axis(layer)
    best: tuple[float, int, tuple[Band, ...], tuple[Band, ...]] | None = None
    for groups in _sizes(count) if how.span < len(how.planes) else [count]:
        planes = [chunk_reading(layer, config, first, some).planes for first, some in _chunks(count, groups)]
        for width in _sizes(column.out):
            columns = cut(column, width)
            if not _rows_can_be_pooled(layer, max(b.out_size for b in columns), config):
                continue
            rows = _fewest(row, config.feature_words // (max(planes) * max(b.in_size for b in columns)))
            if rows is None:
                continue
            tiles = len(rows) * len(columns)
            outputs = sum(b.conv_size for b in rows) * sum(b.conv_size for b in columns)
            loaded = sum(planes) * sum(b.in_size for b in rows) * sum(b.in_size for b in columns)
            fetched = taken * count * (tiles if taken <= config.weight_words else outputs) * config.lanes
            loads = sum(planes) if len(columns) > 1 else len(planes)
            cycles = count * outputs * taken + (loaded + fetched) * config.vec / config.port_bytes
            cost = cycles + DESCRIPTOR_COST * tiles * (loads + len(planes))
            if best is None or cost < best[0]:
                best = cost, groups, rows, columns
    if best is None:
        return None
    _, groups, rows, columns = best
    chunks = list(_chunks(count, groups))
    return Tiling(tuple(Tile(y, x, *some) for some, y, x in product(chunks, rows, columns)))


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, number) of pieces of `size` of `count` things, the last perhaps smaller."""
    return ((first, min(size, count - first)) for first in range(0, count, size))


def _sizes(count: int) -> list[int]:
    """Sizes of nearly equal pieces of `count` things, from all in one to each by itself."""
    return sorted({ceil_div(count, pieces) for pieces in range(1, count + 1)}, reverse=True)


def _by_output(layer: Layer, config: Config) -> Tiling:
    """Every output by itself. A tile is what is pooled together: as much as the line buffer holds."""
    column, row = column_axis(layer), row_axis(layer)
    width = column.out
    while not _rows_can_be_pooled(layer, max(b.out_size for b in cut(column, width)), config):
        width -= 1
    count = len(arrange(layer, config).first)
    pixels = list(product(cut(column, width), range(count)))
    return Tiling(tuple(Tile(whole(row), x, group, 1) for x, group in pixels), parts=reduction_parts(layer, config))


def reduction_parts(layer: Layer, config: Config) -> tuple[Taps, ...]:
    """The reduction of one output cut into parts whose inputs fit a feature buffer, in the order of steps."""
    (kh, kw), (_, h, w) = layer.kernel, layer.in_shape
    span, room = arrange(layer, config).span, config.feature_words
    high, wide = min(kh, h), min(kw, w)  # of a window, what is not padding
    if high * wide <= room and max(kh, kw) <= MAX_TAPS:
        size = ceil_div(span, ceil_div(span, min(span, room // (high * wide))))
        return tuple(Taps(z * kh * kw, z, n, 0, kh, 0, kw) for z, n in _chunks(span, size))
    if wide <= room and kw <= MAX_TAPS:
        size = min(kh, room // wide, MAX_TAPS)
        rows = list(_chunks(kh, size))
        return tuple(Taps((z * kh + ky) * kw, z, 1, ky, n, 0, kw) for z in range(span) for ky, n in rows)
    columns = list(_chunks(kw, min(kw, room, MAX_TAPS)))
    return tuple(
        Taps((z * kh + ky) * kw + kx, z, 1, ky, 1, kx, n)
        for z, ky in product(range(span), range(kh))
        for kx, n in columns
    )
