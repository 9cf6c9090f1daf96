"""Loaders: features from memory into a feature buffer, weights into the ring, parameters into their queue."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi, descriptor, params
from hw.array import group_params
from hw.buffers import beats_per_word, feature_write
from hw.config import Config

PARAM_GROUPS = 4
"""Output groups whose parameters are held ahead of the array."""


class FeatureLoader(wiring.Component):
    """Copies a job's segments of features from memory into consecutive words of its source buffer.

    Members
    -------
    start : In(1), job : In(descriptor.LAYOUT)
        Begin; `job` stays constant until `done`.
    done : Out(1)
    port : Out(ReadPort)
    write : Out(stream of feature_write)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor.LAYOUT),
                "done": Out(1, init=1),
                "port": Out(axi.ReadPort(config)),
                "write": Out(stream.Signature(feature_write(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        slots = config.port_bytes // config.vec
        slot_log2, word_log2, beat_log2 = exact_log2(slots), exact_log2(config.vec), exact_log2(config.port_bytes)

        # Asking: one region a segment. Every beat has a place to go, so there is always room.
        m.submodules.reader = reader = axi.BurstReader(config, axi.MAX_BEATS, 9)
        segment_addr = Signal(axi.ADDRESS_BITS, reset_less=True)
        to_ask = Signal(32)
        first_slot = segment_addr[word_log2:beat_log2] if slots > 1 else C(0, 1)
        m.d.comb += [
            reader.room.eq(C(1, 1).replicate(9)),
            reader.start.valid.eq(to_ask != 0),
            reader.start.payload.addr.eq(Cat(C(0, beat_log2), segment_addr[beat_log2:])),
            reader.start.payload.beats.eq((first_slot + job.load_words + (slots - 1)) >> slot_log2),
        ]
        connect(m, reader.request, flipped(self.port.request))
        with m.If(reader.start.valid & reader.start.ready):
            m.d.sync += [segment_addr.eq(segment_addr + job.load_stride), to_ask.eq(to_ask - 1)]

        # Unpacking: a word a cycle, from the slots of each beat that belong to the segment.
        unpack_addr = Signal(axi.ADDRESS_BITS, reset_less=True)
        next_unpack_addr = Signal(axi.ADDRESS_BITS)
        m.d.comb += next_unpack_addr.eq(unpack_addr + job.load_stride)
        slot = Signal(range(slots), reset_less=True) if slots > 1 else C(0, 1)
        to_unpack, words = Signal(32), Signal(32, reset_less=True)
        word = Signal(range(config.feature_words), reset_less=True)
        beat = self.port.data
        last_word = Signal()
        m.d.comb += [
            last_word.eq(words == 1),
            self.write.valid.eq(beat.valid & (to_unpack != 0)),
            self.write.payload.addr.eq(word),
            self.write.payload.data.eq(beat.payload.data.word_select(slot, 8 * config.vec)),
            self.write.payload.enable.eq(C(1, 1).replicate(config.vec)),
            beat.ready.eq(self.write.valid & self.write.ready & ((slot == slots - 1) | last_word)),
        ]
        with m.If(self.write.valid & self.write.ready):
            m.d.sync += [word.eq(word + 1), words.eq(words - 1)]
            if slots > 1:
                m.d.sync += slot.eq(slot + 1)
            with m.If(last_word):
                m.d.sync += [to_unpack.eq(to_unpack - 1), words.eq(job.load_words), unpack_addr.eq(next_unpack_addr)]
                if slots > 1:
                    m.d.sync += slot.eq(next_unpack_addr[word_log2:beat_log2])
                with m.If(to_unpack == 1):
                    m.d.sync += self.done.eq(1)

        with m.If(self.start):
            m.d.sync += [
                self.done.eq(0),
                segment_addr.eq(job.load_addr),
                unpack_addr.eq(job.load_addr),
                to_ask.eq(job.load_segments),
                to_unpack.eq(job.load_segments),
                words.eq(job.load_words),
                word.eq(job.load_base),
            ]
            if slots > 1:
                m.d.sync += slot.eq(job.load_addr[word_log2:beat_log2])
        return m


class WeightLoader(wiring.Component):
    """Streams a job's weight words, group after group, into the ring: each group `weight_passes` times in a row.

    Members
    -------
    start : In(stream of descriptor.LAYOUT)
        Taken when the words of the job before have all been asked for.
    port : Out(ReadPort)
    fill : Out(stream of a memory beat), room : In, taken : Out
        See WeightRing.
    idle : Out(1)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._beats_per_word = beats_per_word(config)
        self._room_bits = (config.weight_words * self._beats_per_word).bit_length()
        super().__init__(
            {
                "start": In(stream.Signature(descriptor.LAYOUT)),
                "port": Out(axi.ReadPort(config)),
                "fill": Out(stream.Signature(config.port_bits)),
                "room": In(self._room_bits),
                "taken": Out(9),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = self.start.payload
        # A burst never needs more than a quarter of the ring, so that loading goes on while the array works.
        longest = min(axi.MAX_BEATS, config.weight_words * self._beats_per_word // 4)
        m.submodules.reader = reader = axi.BurstReader(config, longest, self._room_bits)
        addr = Signal(axi.ADDRESS_BITS, reset_less=True)
        group_beats, groups = Signal(32, reset_less=True), Signal(16)
        passes, passes_left = Signal(32, reset_less=True), Signal(32, reset_less=True)
        m.d.comb += [
            self.start.ready.eq(groups == 0),
            reader.start.valid.eq(groups != 0),
            reader.start.payload.addr.eq(addr),
            reader.start.payload.beats.eq(group_beats),
            reader.room.eq(self.room),
            self.taken.eq(reader.taken),
            self.idle.eq((groups == 0) & reader.idle),
            self.fill.valid.eq(self.port.data.valid),
            self.fill.payload.eq(self.port.data.payload.data),
            self.port.data.ready.eq(self.fill.ready),
        ]
        connect(m, reader.request, flipped(self.port.request))
        with m.If(self.start.valid & self.start.ready):
            m.d.sync += [
                addr.eq(job.weight_addr),
                group_beats.eq(job.steps << exact_log2(self._beats_per_word)),
                groups.eq(job.groups_out),
                passes.eq(job.weight_passes),
                passes_left.eq(job.weight_passes),
            ]
        with m.If(reader.start.valid & reader.start.ready):
            m.d.sync += passes_left.eq(passes_left - 1)
            with m.If(passes_left == 1):
                m.d.sync += [
                    passes_left.eq(passes),
                    groups.eq(groups - 1),
                    addr.eq(addr + (group_beats << exact_log2(config.port_bytes))),
                ]
        return m


class ParamLoader(wiring.Component):
    """Streams a job's parameter records, one output group at a time, into a short queue.

    Members
    -------
    start : In(stream of descriptor.LAYOUT)
        Taken when the records of the job before have all been asked for.
    port : Out(ReadPort)
    params : Out(stream of group_params)
    arrived : Out(1)
        A group's records are in the queue from the next cycle on.
    idle : Out(1)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(stream.Signature(descriptor.LAYOUT)),
                "port": Out(axi.ReadPort(config)),
                "params": Out(stream.Signature(group_params(config))),
                "arrived": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = self.start.payload
        group_beats = config.lanes * params.PARAM_BYTES // config.port_bytes
        m.submodules.reader = reader = axi.BurstReader(config, min(group_beats, axi.MAX_BEATS), 9)
        m.submodules.queue = queue = SyncFIFOBuffered(width=group_params(config).size, depth=PARAM_GROUPS)
        free = Signal(range(PARAM_GROUPS + 1), init=PARAM_GROUPS)  # groups not asked for
        addr, groups = Signal(axi.ADDRESS_BITS, reset_less=True), Signal(16)
        asked = Signal()
        m.d.comb += [
            self.start.ready.eq(groups == 0),
            reader.start.valid.eq((groups != 0) & (free != 0)),
            reader.start.payload.addr.eq(addr),
            reader.start.payload.beats.eq(group_beats),
            reader.room.eq(C(1, 1).replicate(9)),
            asked.eq(reader.start.valid & reader.start.ready),
            self.idle.eq((groups == 0) & reader.idle),
        ]
        connect(m, reader.request, flipped(self.port.request))
        with m.If(self.start.valid & self.start.ready):
            m.d.sync += [addr.eq(job.param_addr), groups.eq(job.groups_out)]
        with m.If(asked):
            m.d.sync += [groups.eq(groups - 1), addr.eq(addr + config.lanes * params.PARAM_BYTES)]

        # Records arrive low lanes first; only bias and shift are kept.
        records_per_beat = config.port_bytes // params.PARAM_BYTES
        beat = self.port.data
        kept = group_params(config)
        group = Signal(kept, reset_less=True)
        arriving = Signal(kept)
        m.d.comb += arriving.eq(group)
        if records_per_beat:
            at = Signal(range(group_beats))
            for index in range(config.lanes):
                record = data.View(
                    params.LAYOUT, beat.payload.data.word_select(index % records_per_beat, 8 * params.PARAM_BYTES)
                )
                with m.If(at == index // records_per_beat):
                    m.d.comb += [arriving[index].bias.eq(record.bias), arriving[index].shift.eq(record.shift)]
        else:  # a 32-bit port: bias and shift of a lane come in turn
            at = Signal(range(group_beats))
            for index in range(config.lanes):
                with m.If(at == 2 * index):
                    m.d.comb += arriving[index].bias.eq(beat.payload.data)
                with m.If(at == 2 * index + 1):
                    m.d.comb += arriving[index].shift.eq(beat.payload.data)
        complete = Signal()
        m.d.comb += [
            beat.ready.eq(1),
            complete.eq(beat.valid & (at == group_beats - 1)),
            queue.w_data.eq(arriving),
            queue.w_en.eq(complete),
            self.arrived.eq(complete),
            self.params.payload.eq(queue.r_data),
            self.params.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.params.ready),
        ]
        with m.If(beat.valid):
            m.d.sync += [group.eq(arriving), at.eq(Mux(complete, 0, at + 1))]
        m.d.sync += free.eq(free - asked + (self.params.valid & self.params.ready))
        return m
