"""Tiling: a layer whose input exceeds a feature buffer is computed in bands of output rows, one job a band."""

from __future__ import annotations

from typing import NamedTuple

from host.program.layers import Layer
from host.schedule.reading import reading
from hw.config import Config
from hw.layout import ceil_div


class Band(NamedTuple):
    """The rows of one image that a job reads and computes. A layer that fits is one band of all rows.

    With pooling, neighbouring bands share convolution rows: each computes those that its own windows need. With a
    padded pooling window, a band also begins with pooled rows whose windows lack the rows above: memory must get those
    from the band above, which therefore comes later.
    """

    in_first: int
    in_rows: int
    pad_y: int
    """Zero rows above the first input row; below the last, zeros follow only at the layer's own lower edge."""
    conv_first: int
    conv_rows: int
    out_first: int
    out_rows: int
    """Final rows, the incomplete ones at the top included."""
    kept_first: int
    """First final row that is complete."""

    @property
    def conv_end(self) -> int:
        """The convolution row after the last."""
        return self.conv_first + self.conv_rows

    @property
    def out_end(self) -> int:
        """The final row after the last."""
        return self.out_first + self.out_rows


def whole(layer: Layer) -> Band:
    """All rows."""
    _, oh, _ = layer.conv_shape
    _, ph, _ = layer.out_shape
    return Band(0, layer.in_shape[1], layer.padding[0], 0, oh, 0, ph, 0)


def band(layer: Layer, first: int, end: int) -> Band:
    """The band that computes final rows `first` to `end - 1`; every row of the convolution lies in some band."""
    _, h, _ = layer.in_shape
    _, oh, _ = layer.conv_shape
    _, ph, _ = layer.out_shape
    out_first, conv_first, conv_end = first, first, end
    if layer.pool is not None:
        pool = layer.pool
        # The border of -infinity above a band's first window stands for rows that the band must not lack.
        out_first = max(0, first - ceil_div(pool.pad, pool.stride))
        conv_first = out_first * pool.stride
        windows_end = (end - 1) * pool.stride - pool.pad + pool.kernel
        # Rows between windows and below the last are computed too: they may be written back, and hit by faults.
        conv_end = oh if end == ph else min(oh, max(windows_end, end * pool.stride))
    top = conv_first * layer.stride[0] - layer.padding[0]
    bottom = (conv_end - 1) * layer.stride[0] - layer.padding[0] + layer.kernel[0]
    in_first = max(0, top)
    return Band(
        in_first=in_first,
        in_rows=min(h, bottom) - in_first,
        pad_y=in_first - top,
        conv_first=conv_first,
        conv_rows=conv_end - conv_first,
        out_first=out_first,
        out_rows=end - out_first,
        kept_first=first,
    )


def band_words(layer: Layer, rows: int, config: Config) -> int:
    """Words of VEC bytes that `rows` input rows of one image take on chip, all channel groups that the layer reads."""
    return reading(layer, config).planes * rows * layer.in_shape[2]


def smallest(layer: Layer, config: Config) -> int:
    """Words that the layer's input takes on chip in the narrowest bands, one final row each."""
    return max(band_words(layer, b.in_rows, config) for b in _cut(layer, 1))


def bands(layer: Layer, words: int, config: Config) -> tuple[Band, ...]:
    """The fewest bands whose inputs take at most `words` on chip, of nearly equal height, in the order of computing.

    Raises
    ------
    ValueError
        If not even single rows fit.
    """
    _, ph, _ = layer.out_shape
    low, high = 0, ph
    while low < high:
        rows = (low + high + 1) // 2
        if _fits(layer, rows, words, config):
            low = rows
        else:
            high = rows - 1
    if low == 0:
        raise ValueError(f"layer {layer.name!r}: a single row does not fit {words} words")
    even = ceil_div(ph, ceil_div(ph, low))
    cut = _cut(layer, even if _fits(layer, even, words, config) else low)
    padded = layer.pool is not None and layer.pool.pad > 0
    return cut[::-1] if padded else cut


def _cut(layer: Layer, rows: int) -> tuple[Band, ...]:
    _, ph, _ = layer.out_shape
    return tuple(band(layer, first, min(ph, first + rows)) for first in range(0, ph, rows))


def _fits(layer: Layer, rows: int, words: int, config: Config) -> bool:
    return all(band_words(layer, b.in_rows, config) <= words for b in _cut(layer, rows))
