"""On-chip device memory: behind the accelerator's memory port, with a byte at a time for the host link."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import axi
from hw.config import Config, ConfigError
from hw.link.bridge import POKE

PAGE_BYTES = axi.BOUNDARY
"""No burst crosses a multiple of this, so memory of whole pages holds all of a burst or nothing of it."""


class Ram(wiring.Component):
    """Block RAM of `memory_bytes`, one word (a beat of the memory port) wide, with a read and a write port.

    A byte for the link goes before a beat for the accelerator. What is outside is read as anything and written nowhere.

    Parameters
    ----------
    config : Config
    memory_bytes : int
        Whole pages of PAGE_BYTES.
    single_port : bool
        Read or write in a cycle, not both, for memories that have one port.

    Members
    -------
    ar : In(stream of axi.request), r : Out(stream of axi.read_beat)
    aw : In(stream of axi.request), w : In(stream of axi.write_beat), b : Out(1)
        The accelerator's memory port.
    poke : In(stream of POKE)
        A byte to write.
    peek : In(stream of 32), peeked : Out(8)
        A byte to read: its address, and the byte in the cycle after.
    beyond : Out(1)
        The byte transferred in this cycle is outside memory.
    outside : Out(1)
        One cycle: a burst is.

    Raises
    ------
    ConfigError
        If the size cannot be built.
    """

    def __init__(self, config: Config, memory_bytes: int, *, single_port: bool = False) -> None:
        if memory_bytes < PAGE_BYTES or memory_bytes % PAGE_BYTES or memory_bytes > 1 << 32:
            raise ConfigError(
                f"a board's memory_bytes must be a multiple of {PAGE_BYTES} of at most 4 GiB, not {memory_bytes}"
            )
        self._config, self._memory_bytes, self._single_port = config, memory_bytes, single_port
        super().__init__(
            {
                "ar": In(stream.Signature(axi.request(config))),
                "r": Out(stream.Signature(axi.read_beat(config))),
                "aw": In(stream.Signature(axi.request(config))),
                "w": In(stream.Signature(axi.write_beat(config))),
                "b": Out(1),
                "poke": In(stream.Signature(POKE)),
                "peek": In(stream.Signature(32)),
                "peeked": Out(8),
                "beyond": Out(1),
                "outside": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word_bytes, byte_bits = config.port_bytes, exact_log2(config.port_bytes)
        depth = self._memory_bytes // word_bytes
        pages, page_bits = self._memory_bytes // PAGE_BYTES, exact_log2(PAGE_BYTES)
        word = range(depth)
        m.submodules.memory = memory = Memory(shape=config.port_bits, depth=depth, init=[])
        read, write = memory.read_port(), memory.write_port(granularity=8)
        reads, writes = Signal(word), Signal(word)  # the words wanted
        if self._single_port:
            address = Mux(write.en.any(), writes, reads)
            m.d.comb += [read.addr.eq(address), write.addr.eq(address)]
        else:
            m.d.comb += [read.addr.eq(reads), write.addr.eq(writes)]

        def inside(address: Value) -> Value:
            return address[page_bits:] < pages

        # Writes.
        to, filling, wanted = Signal(word), Signal(), Signal()
        m.d.comb += [
            self.aw.ready.eq(~filling),
            self.poke.ready.eq(1),
            self.w.ready.eq(filling & ~self.poke.valid),
            writes.eq(to),
            write.data.eq(self.w.payload.data),
        ]
        m.d.sync += self.b.eq(0)
        with m.If(self.poke.valid):
            m.d.comb += [
                writes.eq(self.poke.payload.addr[byte_bits:]),
                write.data.eq(self.poke.payload.data.replicate(word_bytes)),
                write.en.eq(inside(self.poke.payload.addr) << self.poke.payload.addr[:byte_bits]),
            ]
        with m.Elif(filling & self.w.valid):
            with m.If(wanted):
                m.d.comb += write.en.eq(self.w.payload.strb)
            m.d.sync += to.eq(to + 1)
            with m.If(self.w.payload.last):
                m.d.sync += [filling.eq(0), self.b.eq(1)]
        with m.If(self.aw.valid & self.aw.ready):
            m.d.sync += [
                to.eq(self.aw.payload.addr[byte_bits:]),
                wanted.eq(inside(self.aw.payload.addr)),
                filling.eq(1),
            ]

        # Reads. The memory's own output register holds a beat until it is taken.
        where, left = Signal(word), Signal(8)
        emptying, final, full, free = Signal(), Signal(), Signal(), Signal()
        within = Signal(range(word_bytes))
        m.d.comb += [
            free.eq(~full | self.r.ready),
            self.r.valid.eq(full),
            self.r.payload.data.eq(read.data),
            self.r.payload.last.eq(final),
            self.peeked.eq(read.data.word_select(within, 8)),
            reads.eq(where),
            read.en.eq(0),
        ]
        if self._single_port:
            with m.If(write.en.any()):
                m.d.comb += free.eq(0)
        m.d.comb += [
            self.peek.ready.eq(free),
            self.ar.ready.eq(~emptying),
        ]
        with m.If(self.r.ready):
            m.d.sync += full.eq(0)
        with m.If(self.peek.valid & free):
            m.d.comb += [read.en.eq(1), reads.eq(self.peek.payload[byte_bits:])]
            m.d.sync += within.eq(self.peek.payload[:byte_bits])
        with m.Elif(emptying & free):
            m.d.comb += read.en.eq(1)
            m.d.sync += [where.eq(where + 1), left.eq(left - 1), full.eq(1), final.eq(left == 0)]
            with m.If(left == 0):
                m.d.sync += emptying.eq(0)
        with m.If(self.ar.valid & self.ar.ready):
            m.d.sync += [
                where.eq(self.ar.payload.addr[byte_bits:]),
                left.eq(self.ar.payload.len),
                emptying.eq(1),
            ]

        m.d.comb += [
            self.beyond.eq(
                (self.poke.valid & ~inside(self.poke.payload.addr))
                | (self.peek.valid & self.peek.ready & ~inside(self.peek.payload))
            ),
            self.outside.eq(
                (self.ar.valid & self.ar.ready & ~inside(self.ar.payload.addr))
                | (self.aw.valid & self.aw.ready & ~inside(self.aw.payload.addr))
            ),
        ]
        return m
