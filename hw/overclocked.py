"""The lanes of a build with overclocking: multipliers, and banks of adders whose operand bits may arrive late.

Elaborated only with `Config.overclock`, in place of `hw.lane`; without masks it computes the same.
"""

from __future__ import annotations

from pathlib import Path

from amaranth.hdl import C, Cat, ClockSignal, Instance, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi, masks
from hw.config import Config
from hw.delays import bank_names
from hw.lane import ACCUMULATOR_BITS, FEATURE_BITS

WORD = ACCUMULATOR_BITS


def adders_verilog() -> str:
    """Verilog of the modules that `OverclockedLanes` instantiates: to be appended to the converted text."""
    return (Path(__file__).parent / "overclocked.v").read_text()


class LoadPort(wiring.Signature):
    """Where the words of the masks go: `forget` all, then one word a cycle in which `valid` is 1.

    Members
    -------
    forget : Out(1)
    valid : Out(1)
    record : Out(masks.LAYOUT)
    """

    def __init__(self) -> None:
        super().__init__({"forget": Out(1), "valid": Out(1), "record": Out(masks.LAYOUT)})


class MaskLoader(wiring.Component):
    """Reads the launch's list of masks from memory and hands it to the banks, before the first job begins.

    Members
    -------
    start : In(1), addr : In(address_bits), count : In(32)
        Begin: forget the last launch's masks, then load `count` records from `addr`.
    done : Out(1)
        One cycle: all of them are in place.
    port : Out(ReadPort)
    load : Out(LoadPort)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "addr": In(config.address_bits),
                "count": In(32),
                "done": Out(1),
                "port": Out(axi.ReadPort(config)),
                "load": Out(LoadPort()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        port_bits, record_bits = config.port_bits, 8 * masks.WORD_BYTES
        per_beat, beats_per = max(1, port_bits // record_bits), max(1, record_bits // port_bits)

        m.submodules.reader = reader = axi.BurstReader(config, axi.MAX_BEATS, 9, len(self.count))
        connect(m, reader.request, flipped(self.port.request))
        asking, busy = Signal(), Signal()
        remaining = Signal(32)
        beats = Signal(32)
        if per_beat > 1:
            m.d.comb += beats.eq((self.count + (per_beat - 1)) >> exact_log2(per_beat))
        else:
            m.d.comb += beats.eq(self.count << exact_log2(beats_per))
        m.d.comb += [
            reader.room.eq(C(1, 1).replicate(9)),
            reader.start.valid.eq(asking),
            reader.start.payload.addr.eq(self.addr),
            reader.start.payload.beats.eq(beats),
        ]
        with m.If(reader.start.ready):
            m.d.sync += asking.eq(0)

        # What has arrived and is not handed on: whole beats, taken apart; or pieces of a record, put together.
        held = Signal(max(port_bits, record_bits), reset_less=True)
        left = Signal(range(per_beat + 1))
        pieces = Signal(range(beats_per + 1))
        data_in, taken = self.port.data, Signal()
        m.d.comb += [
            data_in.ready.eq(left == 0),
            taken.eq(data_in.valid & data_in.ready),
            self.load.record.eq(held[:record_bits]),
            self.load.valid.eq((left != 0) & (remaining != 0)),
        ]
        with m.If(left != 0):
            m.d.sync += [left.eq(left - 1), held.eq(held >> record_bits)]
        with m.If(taken):
            if beats_per == 1:
                m.d.sync += [held.eq(data_in.payload.data), left.eq(per_beat)]
            else:
                m.d.sync += held.eq(Cat(held, data_in.payload.data)[port_bits:])
                m.d.sync += pieces.eq(Mux(pieces == beats_per - 1, 0, pieces + 1))
                with m.If(pieces == beats_per - 1):
                    m.d.sync += left.eq(1)
        with m.If(self.load.valid):
            m.d.sync += remaining.eq(remaining - 1)

        m.d.comb += [self.load.forget.eq(self.start), self.done.eq(busy & (remaining == 0) & (left == 0) & ~asking)]
        with m.If(self.done):
            m.d.sync += busy.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), remaining.eq(self.count), asking.eq(self.count != 0)]
        return m


class OverclockedLanes(wiring.Component):
    """All lanes: as LANES times `hw.lane.Lane`, with banks of adders that capture late operand bits.

    Members
    -------
    features : In(VEC x signed 24)
        From registers: int8, sign-extended.
    weights : In(8*LANES*VEC)
    bias : In(32*LANES)
    capture, restart : In(levels of the tree + 1)
        Of each bank's level, the accumulators last: a step's operands are there; the next step is the first of an
        output row, so that it finds a history of zeros.
    first, fresh : In(1)
        Of the step at the accumulators: start from the bias; and that with a history of zeros, in which the
        accumulators before it count as zero, too.
    flips : In(32*LANES)
        XORed into the values that the accumulators take.
    load : In(LoadPort)
    accumulators : Out(32*LANES)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        levels = exact_log2(config.vec)
        super().__init__(
            {
                "features": In(data.ArrayLayout(signed(FEATURE_BITS), config.vec)),
                "weights": In(8 * config.lanes * config.vec),
                "bias": In(WORD * config.lanes),
                "capture": In(levels + 1),
                "restart": In(levels + 1),
                "first": In(1),
                "fresh": In(1),
                "flips": In(WORD * config.lanes),
                "load": In(LoadPort()),
                "accumulators": Out(WORD * config.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, vec = self._config.lanes, self._config.vec
        # Products of all lanes, by element: what the banks of the first level add.
        level = []
        for index in range(vec):
            products = []
            for lane in range(lanes):
                weight = Signal(signed(8), reset_less=True, name=f"weight_{lane}_{index}")
                product = Signal(signed(WORD), reset_less=True, name=f"product_{lane}_{index}")
                operand = self.weights.word_select(lane * vec + index, 8).as_signed()
                m.d.sync += [weight.eq(operand), product.eq(self.features[index] * weight)]
                products.append(product)
            level.append(Cat(*products))
        numbers = {name: number for number, name in enumerate(bank_names(vec))}
        depth = 0
        while len(level) > 1:
            depth += 1
            following = []
            for index in range(0, len(level), 2):
                name = f"tree_{depth}_{index // 2}"
                total = Signal(WORD * lanes, name=name)
                m.submodules[name] = Instance(
                    "redline_capture_adder",
                    *self._common(numbers[name], depth - 1),
                    ("i", "a", level[index]),
                    ("i", "s", level[index + 1]),
                    ("o", "q", total),
                )
                following.append(total)
            level = following
        m.submodules.accumulator = Instance(
            "redline_capture_accumulator",
            *self._common(numbers["accumulator"], depth),
            ("i", "s", level[0]),
            ("i", "bias", self.bias),
            ("i", "first", self.first),
            ("i", "fresh", self.fresh),
            ("i", "flips", self.flips),
            ("o", "q", self.accumulators),
        )
        return m

    def _common(self, bank: int, level: int) -> list[tuple[str, str, object]]:
        """Parameters and ports that every bank has."""
        record = self.load.record
        return [
            ("p", "LANES", self._config.lanes),
            ("p", "GROUPS", self._config.overclock),
            ("p", "BANK", bank),
            ("i", "clk", ClockSignal()),
            ("i", "forget", self.load.forget),
            ("i", "load", self.load.valid),
            *[("i", f"load_{name}", record[name]) for name in ("word", "lane", "group", "operand", "bank")],
            ("i", "capture", self.capture[level]),
            ("i", "restart", self.restart[level]),
        ]
