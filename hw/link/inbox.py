"""Frames that have arrived: kept until the bridge takes them, forgotten if they prove damaged."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.link.frame import PIECE


class Inbox(wiring.Component):
    """A ring of bytes in which a frame counts only when all of it has arrived and is sound.

    Parameters
    ----------
    depth : int
        Bytes it holds, plus one (a power of two).

    Members
    -------
    arriving : In(stream of PIECE)
        Always accepted; what does not fit is forgotten with its frame.
    accept, reject : In(1)
        The frame under way is complete (in the cycle of its last byte), or void.
    content : Out(stream of PIECE)
        Sound frames, in order.
    damaged : Out(1)
        One cycle: a frame was forgotten: it was void, or there was no room.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        super().__init__(
            {
                "arriving": In(stream.Signature(PIECE)),
                "accept": In(1),
                "reject": In(1),
                "content": Out(stream.Signature(PIECE)),
                "damaged": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = exact_log2(self._depth)
        m.submodules.memory = memory = Memory(shape=PIECE, depth=self._depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        written, kept, taken = Signal(bits), Signal(bits), Signal(bits)
        following = Signal(bits)
        room, overflow, loaded = Signal(), Signal(), Signal()
        m.d.comb += [
            self.arriving.ready.eq(1),
            following.eq(written + 1),
            room.eq((following != taken) & ~overflow),
            write.addr.eq(written),
            write.data.eq(self.arriving.payload),
            write.en.eq(self.arriving.valid & room),
        ]
        with m.If(self.arriving.valid):
            with m.If(room):
                m.d.sync += written.eq(following)
            with m.Else():
                m.d.sync += overflow.eq(1)
        with m.If(self.accept & room):
            m.d.sync += kept.eq(following)
        with m.If(self.reject | (self.accept & ~room)):
            m.d.comb += self.damaged.eq(1)
            m.d.sync += written.eq(kept)
        with m.If(self.accept | self.reject):
            m.d.sync += overflow.eq(0)

        m.d.comb += [
            read.addr.eq(taken),
            read.en.eq((taken != kept) & (~loaded | self.content.ready)),
            self.content.valid.eq(loaded),
            self.content.payload.eq(read.data),
        ]
        with m.If(read.en):
            m.d.sync += [loaded.eq(1), taken.eq(taken + 1)]
        with m.Elif(self.content.ready):
            m.d.sync += loaded.eq(0)
        return m
