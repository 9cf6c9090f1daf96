"""The saboteur: replays a fault list from memory, as masks for the steps or outputs it names.

Elaborated only with `Config.saboteur`.
"""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi, events
from hw.config import Config

AHEAD = 8
"""Masks held ready."""
BUFFERED_BEATS = 16
"""Memory beats of events held ahead."""

KEY = data.StructLayout({"job": 32, "slot": 32})


class Saboteur(wiring.Component):
    """Merges the events of one (job, slot) into a mask, and offers masks in order.

    Parameters
    ----------
    bits : int
        Bits of one lane's value: 32 (accumulator) or 8 (feature).

    Members
    -------
    start : In(1), addr : In(address_bits), count : In(32)
        Begin a launch with `count` events at `addr`.
    stop : In(1)
        End of the launch: forget what was not used.
    idle : Out(1)
        No event is on its way from memory, and a stopped launch is forgotten: it may start.
    port : Out(ReadPort)
    job, slot : In(32)
        Where the stage stands.
    known : Out(1)
        Whether this place is hit is known; otherwise the stage must wait.
    hit : Out(1), take : In(1)
        This place is hit; the stage passes it in this cycle.
    mask : Out(bits*LANES), mask_take : In(1)
        Mask of the oldest hit passed, and its use (possibly later).
    applied : Out(32)
        Events whose masks were taken in this launch.
    """

    def __init__(self, config: Config, bits: int) -> None:
        self._config = config
        self._bits = bits
        super().__init__(
            {
                "start": In(1),
                "addr": In(config.address_bits),
                "count": In(32),
                "stop": In(1),
                "idle": Out(1),
                "port": Out(axi.ReadPort(config)),
                "job": In(32),
                "slot": In(32),
                "known": Out(1),
                "hit": Out(1),
                "take": In(1),
                "mask": Out(bits * config.lanes),
                "mask_take": In(1),
                "applied": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, bits = self._config, self._bits
        width = bits * config.lanes
        clear, quiet, draining = Signal(), Signal(), Signal()
        m.d.comb += clear.eq(self.start | self.stop | draining)

        # Events from memory: beats wait in a queue that was reserved when they were asked for.
        room_bits = BUFFERED_BEATS.bit_length()
        m.submodules.reader = reader = axi.BurstReader(config, BUFFERED_BEATS // 2, room_bits, len(self.count))
        m.submodules.beats = beats = SyncFIFOBuffered(width=config.port_bits, depth=BUFFERED_BEATS)
        free = Signal(range(BUFFERED_BEATS + 1), init=BUFFERED_BEATS)
        on_the_way = Signal(range(BUFFERED_BEATS + 1))
        per_beat = max(1, config.port_bytes // events.EVENT_BYTES)
        beats_per_event = max(1, events.EVENT_BYTES // config.port_bytes)
        to_ask = Signal()
        asked_beats = Signal(32, reset_less=True)
        pop = Signal()
        m.d.comb += [
            reader.room.eq(free),
            reader.start.valid.eq(to_ask),
            reader.start.payload.addr.eq(self.addr),
            reader.start.payload.beats.eq(asked_beats),
            beats.w_data.eq(self.port.data.payload.data),
            beats.w_en.eq(self.port.data.valid),
            self.port.data.ready.eq(1),
            beats.r_en.eq(pop),
            quiet.eq(~to_ask & reader.idle & (on_the_way == 0)),
            self.idle.eq(quiet & ~draining),
        ]
        connect(m, reader.request, flipped(self.port.request))
        m.d.sync += [
            free.eq(free - reader.taken + (pop & beats.r_rdy)),
            on_the_way.eq(on_the_way + reader.taken - self.port.data.valid),
        ]
        with m.If(to_ask & reader.start.ready):
            m.d.sync += to_ask.eq(0)

        # One event a cycle.
        remaining = Signal(32)
        event = Signal(events.LAYOUT)
        event_valid, event_take = Signal(), Signal()
        if config.port_bytes >= events.EVENT_BYTES:
            at = Signal(range(per_beat)) if per_beat > 1 else C(0, 1)
            m.d.comb += [
                event.eq(beats.r_data.word_select(at, 8 * events.EVENT_BYTES)),
                event_valid.eq(beats.r_rdy & (remaining != 0)),
                pop.eq(event_take & ((at == per_beat - 1) | (remaining == 1))),
            ]
            if per_beat > 1:
                with m.If(event_take):
                    m.d.sync += at.eq(Mux(remaining == 1, 0, at + 1))
                with m.If(clear):
                    m.d.sync += at.eq(0)
        else:
            held = Signal(8 * events.EVENT_BYTES, reset_less=True)
            have = Signal(range(beats_per_event + 1))
            m.d.comb += [
                event.eq(held),
                event_valid.eq((have == beats_per_event) & (remaining != 0)),
                pop.eq((have != beats_per_event) & (remaining != 0)),
            ]
            with m.If(pop & beats.r_rdy):
                m.d.sync += [held.eq(Cat(held, beats.r_data)[config.port_bits :]), have.eq(have + 1)]
            with m.If(event_take | clear):
                m.d.sync += have.eq(0)
        with m.If(event_take):
            m.d.sync += remaining.eq(remaining - 1)

        # Merging: events of one place gather until another place, or the end of the list, follows.
        mask = Signal(width, reset_less=True)
        merged = Signal(16)  # events in the mask
        key = Signal(KEY, reset_less=True)
        same, flush = Signal(), Signal()
        one_hot = Signal(bits)
        flips = Signal(width)
        m.d.comb += one_hot.eq(C(1) << event.bit[: exact_log2(bits)])
        for lane in range(config.lanes):
            m.d.comb += flips.word_select(lane, bits).eq(Mux(event.lane == lane, one_hot, 0))

        keys = SyncFIFOBuffered(width=64, depth=AHEAD)
        counts = SyncFIFOBuffered(width=16, depth=AHEAD)
        masks = SyncFIFOBuffered(width=width, depth=AHEAD)
        m.submodules += [keys, counts, masks]
        m.d.comb += [
            same.eq((event.job == key.job) & (event.slot == key.slot)),
            flush.eq((merged != 0) & ((event_valid & ~same) | (remaining == 0)) & keys.w_rdy & masks.w_rdy),
            event_take.eq(event_valid & (flush | (merged == 0) | same)),
            keys.w_en.eq(flush),
            keys.w_data.eq(key),
            counts.w_en.eq(flush),
            counts.w_data.eq(merged),
            masks.w_en.eq(flush),
            masks.w_data.eq(mask),
        ]
        with m.If(event_take):
            m.d.sync += [key.job.eq(event.job), key.slot.eq(event.slot)]
            m.d.sync += [mask.eq(Mux(flush | (merged == 0), flips, mask ^ flips))]
            m.d.sync += merged.eq(Mux(flush, 1, merged + 1))
        with m.Elif(flush):
            m.d.sync += merged.eq(0)

        # Offering.
        nothing_left = Signal()
        head = Signal(KEY)
        m.d.comb += [
            nothing_left.eq((remaining == 0) & (merged == 0) & (keys.level == 0)),
            head.eq(keys.r_data),
            self.known.eq(keys.r_rdy | nothing_left),
            self.hit.eq(keys.r_rdy & (head.job == self.job) & (head.slot == self.slot)),
            keys.r_en.eq(self.hit & self.take),
            self.mask.eq(masks.r_data),
            masks.r_en.eq(self.mask_take),
            counts.r_en.eq(self.mask_take),
        ]
        with m.If(self.mask_take):
            m.d.sync += self.applied.eq(self.applied + counts.r_data)

        # Leftovers (events that name no place) are drained between launches.
        with m.If(self.start):
            m.d.sync += [remaining.eq(self.count), to_ask.eq(self.count != 0), self.applied.eq(0), merged.eq(0)]
            if per_beat > 1:
                m.d.sync += asked_beats.eq((self.count + (per_beat - 1)) >> exact_log2(per_beat))
            else:
                m.d.sync += asked_beats.eq(self.count << exact_log2(beats_per_event))
        with m.If(self.stop):
            m.d.sync += [draining.eq(1), remaining.eq(0), merged.eq(0)]
        with m.If(draining):
            m.d.comb += [pop.eq(1), keys.r_en.eq(1), masks.r_en.eq(1), counts.r_en.eq(1)]
            empty = Cat(queue.level == 0 for queue in (keys, counts, masks)).all()
            with m.If(quiet & (free == BUFFERED_BEATS) & empty):
                m.d.sync += draining.eq(0)
        return m
