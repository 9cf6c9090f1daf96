"""Frames on a byte stream (`hw.link.protocol`): the one that takes them off, and the one that puts them on."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from hw.link.protocol import CRC_BYTES, ESCAPE, FLAG, FLIP

PIECE = data.StructLayout({"data": 8, "last": 1})
"""One byte of a frame's content."""


class Deframer(wiring.Component):
    """Content of frames, without their CRC. A frame's bytes come before it is known whether it is sound.

    Members
    -------
    bytes : In(stream of 8)
        Always accepted.
    error : In(1)
        What came is not all that was sent; the frame under way is damaged.
    content : Out(stream of PIECE)
        Each is offered for one cycle: the line does not wait.
    accept : Out(1)
        With the last byte: all bytes since the last `accept` or `reject` are a sound frame.
    reject : Out(1)
        They are none.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "bytes": In(stream.Signature(8)),
                "error": In(1),
                "content": Out(stream.Signature(PIECE)),
                "accept": Out(1),
                "reject": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC(data_width=8).create()
        # The last four bytes are the CRC, and the one before is the last of the content.
        waiting = Signal(8 * (CRC_BYTES + 1))
        count = Signal(range(CRC_BYTES + 2))
        full, escaped, damaged, sound = Signal(), Signal(), Signal(), Signal()
        byte = self.bytes.payload
        value = Signal(8)
        m.d.comb += [
            full.eq(count == CRC_BYTES + 1),
            sound.eq(full & crc.match_detected & ~damaged & ~escaped & ~self.error),
            value.eq(byte ^ Mux(escaped, FLIP, 0)),
            crc.data.eq(value),
            self.bytes.ready.eq(1),
            self.content.payload.data.eq(waiting[:8]),
        ]
        with m.If(self.error):
            m.d.sync += damaged.eq(1)
        with m.If(self.bytes.valid):
            with m.If(byte == FLAG):
                m.d.comb += [
                    crc.start.eq(1),
                    self.content.valid.eq(sound),
                    self.content.payload.last.eq(1),
                    self.accept.eq(sound),
                    # Nothing between two flags is no frame.
                    self.reject.eq(~sound & ((count != 0) | damaged | escaped)),
                ]
                m.d.sync += [count.eq(0), escaped.eq(0), damaged.eq(0)]
            with m.Elif(byte == ESCAPE):
                m.d.sync += escaped.eq(1)
            with m.Else():
                m.d.comb += [crc.valid.eq(1), self.content.valid.eq(full)]
                m.d.sync += [escaped.eq(0), waiting.eq(Cat(waiting[8:], value))]
                with m.If(~full):
                    m.d.sync += count.eq(count + 1)
        return m


class Framer(wiring.Component):
    """Frames of content.

    Members
    -------
    content : In(stream of PIECE)
    bytes : Out(stream of 8)
    """

    def __init__(self) -> None:
        super().__init__({"content": In(stream.Signature(PIECE)), "bytes": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC(data_width=8).create()
        at = Signal(range(CRC_BYTES))
        raw = Signal(8)
        escaped, special, done = Signal(), Signal(), Signal()
        m.d.comb += [
            special.eq((raw == FLAG) | (raw == ESCAPE)),
            self.bytes.payload.eq(Mux(escaped, raw ^ FLIP, Mux(special, ESCAPE, raw))),
            # The byte itself leaves in this cycle, not an escape before it.
            done.eq(self.bytes.valid & self.bytes.ready & (~special | escaped)),
            crc.data.eq(raw),
        ]
        with m.FSM():
            with m.State("OPEN"):
                m.d.comb += [
                    self.bytes.valid.eq(self.content.valid),
                    self.bytes.payload.eq(FLAG),
                    crc.start.eq(1),
                ]
                with m.If(self.bytes.valid & self.bytes.ready):
                    m.next = "CONTENT"
            with m.State("CONTENT"):
                m.d.comb += [
                    raw.eq(self.content.payload.data),
                    self.bytes.valid.eq(self.content.valid),
                    self.content.ready.eq(done),
                    crc.valid.eq(done),
                ]
                with m.If(done & self.content.payload.last):
                    m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [raw.eq(crc.crc.word_select(at, 8)), self.bytes.valid.eq(1)]
                with m.If(done):
                    m.d.sync += at.eq(at + 1)
                    with m.If(at == CRC_BYTES - 1):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [self.bytes.valid.eq(1), self.bytes.payload.eq(FLAG)]
                with m.If(self.bytes.ready):
                    m.next = "OPEN"
        with m.If(self.bytes.valid & self.bytes.ready):
            m.d.sync += escaped.eq(special & ~escaped)
        return m
