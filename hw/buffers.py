"""On-chip memories: a feature buffer of VEC-byte words, and the weight ring."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.config import Config


def feature_write(config: Config) -> data.StructLayout:
    """Layout of one write to a feature buffer: word address, data, and one enable a byte."""
    return data.StructLayout({"addr": range(config.feature_words), "data": 8 * config.vec, "enable": config.vec})


class FeatureBuffer(wiring.Component):
    """One feature buffer: a read port for the array, and a write port that the writer shares with the loader.

    Members
    -------
    read_addr : In
        Word read; its data is at `read_data` one cycle later.
    read_data : Out(8*VEC)
    store : In(stream of feature_write)
        Results of the array; always accepted.
    load : In(stream of feature_write)
        Words from memory; accepted in cycles without a store.
    """

    delay = 1

    def __init__(self, config: Config) -> None:
        self._config = config
        write = stream.Signature(feature_write(config))
        super().__init__(
            {
                "read_addr": In(range(config.feature_words)),
                "read_data": Out(8 * config.vec),
                "store": In(write),
                "load": In(write),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.memory = memory = Memory(shape=8 * config.vec, depth=config.feature_words, init=[])
        read = memory.read_port()
        write = memory.write_port(granularity=8)
        m.d.comb += [read.addr.eq(self.read_addr), self.read_data.eq(read.data)]
        m.d.comb += [self.store.ready.eq(1), self.load.ready.eq(~self.store.valid)]
        for source in (self.load, self.store):
            with m.If(source.valid):
                m.d.comb += [
                    write.addr.eq(source.payload.addr),
                    write.data.eq(source.payload.data),
                    write.en.eq(source.payload.enable),
                ]
        return m


def beats_per_word(config: Config) -> int:
    """Memory beats that make one weight word of LANES x VEC bytes."""
    return config.lanes * config.vec // config.port_bytes


def ring_pointer(config: Config) -> range:
    """Shape of a pointer into the weight ring: it runs over twice the depth, so that full and empty differ."""
    return range(2 * config.weight_words)


class WeightRing(wiring.Component):
    """Weight words in the order they will be used: filled ahead by the loader, read and re-read by the array.

    Members
    -------
    fill : In(stream of one memory beat)
        Weight words, low bytes first; always accepted: the loader asks for no more than `room`.
    taken : In
        Beats that the loader asks for in this cycle.
    room : Out
        Beats that may be asked for.
    read_ptr : In
        Word to read; its data is at `read_data` one cycle later.
    read_ready : Out(1)
        The word at `read_ptr` has arrived.
    read_data : Out(8*LANES*VEC)
    keep_ptr : In
        Oldest word still needed.
    clear : In(1)
        Forget everything (start of a launch).
    """

    delay = 1

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "fill": In(stream.Signature(config.port_bits)),
                "taken": In(9),
                "room": Out(range(config.weight_words * beats_per_word(config) + 1)),
                "read_ptr": In(ring_pointer(config)),
                "read_ready": Out(1),
                "read_data": Out(8 * config.lanes * config.vec),
                "keep_ptr": In(ring_pointer(config)),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        beats, words = beats_per_word(config), config.weight_words
        m.submodules.memory = memory = Memory(shape=8 * config.lanes * config.vec, depth=words, init=[])
        read = memory.read_port()
        write = memory.write_port(granularity=config.port_bits)
        written = Signal(ring_pointer(config))
        beat = Signal(range(beats))
        asked = Signal(range(2 * words * beats))

        m.d.comb += [
            read.addr.eq(self.read_ptr[: (words - 1).bit_length()]),
            self.read_data.eq(read.data),
            self.read_ready.eq(self.read_ptr != written),
            write.addr.eq(written[: (words - 1).bit_length()]),
            write.data.eq(self.fill.payload.replicate(beats)),
            self.fill.ready.eq(1),
        ]
        in_use = Signal(range(2 * words * beats))
        m.d.comb += in_use.eq(asked - self.keep_ptr * beats)
        m.d.comb += self.room.eq(words * beats - in_use)
        m.d.sync += asked.eq(asked + self.taken)
        with m.If(self.fill.valid):
            m.d.comb += write.en.eq(1 << beat)
            m.d.sync += beat.eq(beat + 1)
            with m.If(beat == beats - 1):
                m.d.sync += [beat.eq(0), written.eq(written + 1)]
        with m.If(self.clear):
            m.d.sync += [written.eq(0), beat.eq(0), asked.eq(0)]
        return m
