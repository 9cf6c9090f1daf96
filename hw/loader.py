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


class Pieces(wiring.Component):
    """The order in which a load's words come: chunk by chunk, of every segment in turn.

    Members
    -------
    start : In(1), job : In(descriptor.layout)
        Go to the first piece of the job's load; `job` is needed in this cycle only.
    advance : In(1)
        Go to the next piece.
    valid : Out(1)
        There is a piece: one segment's words of one chunk.
    addr : Out(address_bits), word : Out, words : Out(count_bits)
        Its byte address in memory, its first word in the buffer, and its length.
    ends_chunk : Out(1)
        It is its chunk's last.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor.layout(config)),
                "advance": In(1),
                "valid": Out(1),
                "addr": Out(config.address_bits),
                "word": Out(range(config.feature_words)),
                "words": Out(config.count_bits),
                "ends_chunk": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        word_log2 = exact_log2(config.vec)
        segments, segment_words, chunk_words, stride = (
            Signal(config.count_bits, name=name, reset_less=True)
            for name in ("segments", "segment_words", "chunk_words", "stride")
        )
        # Of the chunk in the first segment; then of the piece.
        chunk_addr = Signal(config.address_bits, reset_less=True)
        chunk_word = Signal(range(config.feature_words), reset_less=True)
        segments_left, words_left = (
            Signal(config.count_bits, name=name, reset_less=True) for name in ("segments_left", "words_left")
        )
        next_addr, next_word = Signal(config.address_bits), Signal(range(config.feature_words))
        last_chunk, words_after = Signal(), Signal(config.count_bits)
        m.d.comb += [
            self.ends_chunk.eq(segments_left == 1),
            last_chunk.eq(words_left == self.words),
            words_after.eq(words_left - chunk_words),
            next_addr.eq(chunk_addr + (chunk_words << word_log2)),
            next_word.eq(chunk_word + chunk_words),
        ]
        with m.If(self.advance):
            m.d.sync += [
                segments_left.eq(segments_left - 1),
                self.addr.eq(self.addr + stride),
                self.word.eq(self.word + segment_words),
            ]
            with m.If(self.ends_chunk):
                m.d.sync += [segments_left.eq(segments), words_left.eq(words_after), self.valid.eq(~last_chunk)]
                m.d.sync += Cat(chunk_addr, self.addr).eq(next_addr.replicate(2))
                m.d.sync += Cat(chunk_word, self.word).eq(next_word.replicate(2))
                m.d.sync += self.words.eq(Mux(words_after < chunk_words, words_after, chunk_words))
        with m.If(self.start):
            whole = job.load_chunk == 0
            words = Mux(whole | (job.load_words < job.load_chunk), job.load_words, job.load_chunk)
            m.d.sync += [
                self.valid.eq(1),
                segments.eq(job.load_segments),
                segments_left.eq(job.load_segments),
                segment_words.eq(job.load_words),
                words_left.eq(job.load_words),
                chunk_words.eq(words),
                self.words.eq(words),
                stride.eq(job.load_stride),
                Cat(chunk_addr, self.addr).eq(job.load_addr.replicate(2)),
                Cat(chunk_word, self.word).eq(job.load_base[: len(self.word)].replicate(2)),
            ]
        return m


class FeatureLoader(wiring.Component):
    """Copies a job's segments of features from memory into its source buffer, one after the other or in chunks.

    Members
    -------
    start : In(1), job : In(descriptor.layout)
        Begin; only while `done`. `job` is needed in this cycle only.
    done : Out(1)
    to_b : Out(1)
        The words go to buffer B.
    rows : Out(extent_bits)
        Input rows of which all segments' words have been written, with `load_chunk`.
    port : Out(ReadPort)
    write : Out(stream of feature_write)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor.layout(config)),
                "done": Out(1),
                "to_b": Out(1),
                "rows": Out(config.extent_bits),
                "port": Out(axi.ReadPort(config)),
                "write": Out(stream.Signature(feature_write(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        slots = config.port_bytes // config.vec
        slot_log2, word_log2, beat_log2 = exact_log2(slots), exact_log2(config.vec), exact_log2(config.port_bytes)
        m.submodules.asked = asked = Pieces(config)
        m.submodules.unpacked = unpacked = Pieces(config)
        for pieces in (asked, unpacked):
            m.d.comb += [pieces.start.eq(self.start), pieces.job.eq(job)]

        # Asking: one region a piece. Every beat has a place to go, so there is always room.
        m.submodules.reader = reader = axi.BurstReader(config, axi.MAX_BEATS, 9)
        first_slot = asked.addr[word_log2:beat_log2] if slots > 1 else C(0, 1)
        m.d.comb += [
            reader.room.eq(C(1, 1).replicate(9)),
            reader.start.valid.eq(asked.valid),
            reader.start.payload.addr.eq(Cat(C(0, beat_log2), asked.addr[beat_log2:])),
            reader.start.payload.beats.eq((first_slot + asked.words + (slots - 1)) >> slot_log2),
            asked.advance.eq(asked.valid & reader.start.ready),
        ]
        connect(m, reader.request, flipped(self.port.request))

        # Unpacking: a word a cycle, from the slots of each beat that belong to the piece.
        at = Signal(config.count_bits)  # word of the piece
        slot = Signal(range(slots)) if slots > 1 else C(0, 1)
        beat = self.port.data
        last_word = Signal()
        rows_of_chunk = Signal(config.extent_bits, reset_less=True)
        if slots > 1:
            m.d.comb += slot.eq(unpacked.addr[word_log2:beat_log2] + at)
        m.d.comb += [
            last_word.eq(at == unpacked.words - 1),
            self.write.valid.eq(beat.valid & unpacked.valid),
            self.write.payload.addr.eq(unpacked.word + at),
            self.write.payload.data.eq(beat.payload.data.word_select(slot, 8 * config.vec)),
            self.write.payload.enable.eq(C(1, 1).replicate(config.vec)),
            beat.ready.eq(self.write.valid & self.write.ready & ((slot == slots - 1) | last_word)),
            unpacked.advance.eq(self.write.valid & self.write.ready & last_word),
            self.done.eq(~unpacked.valid),
        ]
        with m.If(self.write.valid & self.write.ready):
            m.d.sync += at.eq(Mux(last_word, 0, at + 1))
            with m.If(last_word & unpacked.ends_chunk):
                m.d.sync += self.rows.eq(self.rows + rows_of_chunk)

        with m.If(self.start):
            m.d.sync += [
                self.to_b.eq((job.flags & descriptor.Flag.SRC_B).any()),
                self.rows.eq(0),
                rows_of_chunk.eq(job.load_rows),
            ]
        return m


class WeightLoader(wiring.Component):
    """Streams a job's weight words, group after group, into the ring: each group `weight_passes` times in a row.

    Members
    -------
    start : In(stream of descriptor.layout)
        Taken when the words of the job before have all been asked for.
    port : Out(ReadPort)
    fill : Out(stream of a memory beat), room : In, taken : Out
        See WeightRing.
    idle : Out(1)
    first : Out(1)
        The words of a job's first group are being asked for: the array cannot begin without.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._beats_per_word = beats_per_word(config)
        self._room_bits = (config.weight_words * self._beats_per_word).bit_length()
        super().__init__(
            {
                "start": In(stream.Signature(descriptor.layout(config))),
                "port": Out(axi.ReadPort(config)),
                "fill": Out(stream.Signature(config.port_bits)),
                "room": In(self._room_bits),
                "taken": Out(9),
                "idle": Out(1),
                "first": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = self.start.payload
        beats_bits = min(32, config.count_bits + exact_log2(self._beats_per_word))
        # A burst never needs more than a quarter of the ring, so that loading goes on while the array works.
        longest = min(axi.MAX_BEATS, config.weight_words * self._beats_per_word // 4)
        m.submodules.reader = reader = axi.BurstReader(config, longest, self._room_bits, beats_bits)
        addr = Signal(config.address_bits, reset_less=True)
        group_beats, groups = Signal(beats_bits, reset_less=True), Signal(config.extent_bits)
        passes, passes_left = (
            Signal(config.count_bits, name=name, reset_less=True) for name in ("passes", "passes_left")
        )
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
        fresh = Signal()  # no group of the job has been begun
        with m.If(self.start.valid & self.start.ready):
            m.d.sync += [
                fresh.eq(1),
                addr.eq(job.weight_addr),
                group_beats.eq(job.steps << exact_log2(self._beats_per_word)),
                groups.eq(job.groups_out),
                passes.eq(job.weight_passes),
                passes_left.eq(job.weight_passes),
            ]
        with m.If(reader.start.valid & reader.start.ready):
            m.d.sync += [passes_left.eq(passes_left - 1), self.first.eq(fresh), fresh.eq(0)]
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
    start : In(stream of descriptor.layout)
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
                "start": In(stream.Signature(descriptor.layout(config))),
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
        addr, groups = Signal(config.address_bits, reset_less=True), Signal(config.extent_bits)
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
