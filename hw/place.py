"""Addresses of outputs: where each goes in a buffer or in memory, kept incrementally."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.config import Config


class OutputPlace(wiring.Component):
    """Where the current output goes: its address, kept incrementally over output group, image, row, column.

    Addresses are in whatever unit `base`, `plane`, `image` and `pixel` are given in (words or bytes).

    Parameters
    ----------
    bits : int
        Width of an address.

    Members
    -------
    start : In(1)
        Go to the first output. The extents and distances stay constant until the last.
    advance : In(1)
        Go to the next output.
    width, height, images : In(extent_bits)
    base : In(bits), plane, image : In(count_bits), pixel : In(8)
        Address of the first output; distances between channel groups of VEC, images, and pixels.
    gap : In(count_bits)
        Left out after each row; 0: rows adjoin.
    first_sub : In
        If LANES < VEC: which part of its group the first output is.
    addr : Out(bits)
        Address of the current output's first (or only) channel group.
    group : Out
        Index of that channel group of VEC.
    sub : Out
        If LANES < VEC: which part of the group the output is.
    last_of_row : Out(1)
        The current output is the last of its row.
    last_of_plane : Out(1)
        The current output is the last of its (output group, image).
    """

    def __init__(self, config: Config, bits: int) -> None:
        self._config = config
        self._bits = bits
        self._subs, self._parts = max(1, config.vec // config.lanes), max(1, config.lanes // config.vec)
        super().__init__(
            {
                "start": In(1),
                "advance": In(1),
                "width": In(config.extent_bits),
                "height": In(config.extent_bits),
                "images": In(config.extent_bits),
                "base": In(bits),
                "plane": In(config.count_bits),
                "image": In(config.count_bits),
                "pixel": In(8),
                "gap": In(config.count_bits),
                "first_sub": In(range(self._subs)),
                "addr": Out(bits),
                "group": Out(min(16, config.extent_bits + exact_log2(self._parts))),
                "sub": Out(range(self._subs)),
                "last_of_row": Out(1),
                "last_of_plane": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, parts = self._config, self._parts
        x, y, image = (Signal(config.extent_bits, name=name, reset_less=True) for name in ("x", "y", "image"))
        group_base, image_base = Signal(self._bits, reset_less=True), Signal(self._bits, reset_less=True)
        next_image, next_group = Signal(self._bits), Signal(self._bits)
        # Constant within a job, and registered: the address then is one addition away, as it is within a row.
        across = Signal(config.count_bits, reset_less=True)
        m.d.sync += across.eq(self.pixel + self.gap)
        m.d.comb += [
            next_image.eq(image_base + self.image),
            next_group.eq(group_base + self.plane * parts),
            self.last_of_row.eq(x == self.width - 1),
            self.last_of_plane.eq(self.last_of_row & (y == self.height - 1)),
        ]
        with m.If(self.advance):
            m.d.sync += [x.eq(x + 1), self.addr.eq(self.addr + self.pixel)]
            with m.If(self.last_of_row):
                m.d.sync += [x.eq(0), y.eq(y + 1), self.addr.eq(self.addr + across)]
            with m.If(self.last_of_plane):
                m.d.sync += [y.eq(0), image.eq(image + 1), image_base.eq(next_image), self.addr.eq(next_image)]
                with m.If(image == self.images - 1):
                    m.d.sync += image.eq(0)
                    with m.If(self.sub == self._subs - 1):
                        m.d.sync += [self.sub.eq(0), self.group.eq(self.group + parts)]
                        m.d.sync += [group_base.eq(next_group), image_base.eq(next_group), self.addr.eq(next_group)]
                    with m.Else():
                        m.d.sync += [self.sub.eq(self.sub + 1), image_base.eq(group_base), self.addr.eq(group_base)]
        with m.If(self.start):
            m.d.sync += [x.eq(0), y.eq(0), image.eq(0), self.group.eq(0), self.sub.eq(self.first_sub)]
            m.d.sync += [self.addr.eq(self.base), group_base.eq(self.base), image_base.eq(self.base)]
        return m
