"""The array of a build with a microprogram: one lane's products a cycle, and accumulators that take turns."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import Config
from hw.lane import ACCUMULATOR_BITS

SUM_BITS = 9
"""Of the shifted accumulator as it is read: one more than an output has, to tell what is beyond."""


def steps_under_way(config: Config) -> int:
    """Cycles from a step's last products at the ports to the sum in its accumulator."""
    return 2 + (config.vec - 1).bit_length()


class TurnMac(wiring.Component):
    """VEC multipliers, a registered tree, and LANES accumulators in a ring: the first is used, then is the last.

    Members
    -------
    valid : In(1), features, weights : In(8*VEC)
        One lane's products of a step. LANES of them in a row are a step.
    clear : In(1)
        All accumulators are zero.
    bias : In(1), word : In(32)
        Add the word to the first accumulator, and go to the next.
    turn : In(1)
        Go to the next accumulator.
    shift : In(1)
        Shift the first accumulator right by a bit, which is kept for the rounding until `turn`.
    idle : Out(1)
        No products are under way. `clear`, `bias`, `turn` and `shift` are for an idle array.
    sum : Out(signed SUM_BITS), up : Out(1)
        The first accumulator, or what is nearest to it; and what its rounding adds.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "valid": In(1),
                "features": In(8 * config.vec),
                "weights": In(8 * config.vec),
                "clear": In(1),
                "bias": In(1),
                "word": In(32),
                "turn": In(1),
                "shift": In(1),
                "idle": Out(1),
                "sum": Out(signed(SUM_BITS)),
                "up": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        level = []
        for index in range(config.vec):
            product = Signal(signed(16), reset_less=True, name=f"product_{index}")
            feature = self.features.word_select(index, 8).as_signed()
            m.d.sync += product.eq(feature * self.weights.word_select(index, 8).as_signed())
            level.append(product)
        while len(level) > 1:
            following = []
            for index in range(0, len(level), 2):
                total = Signal(signed(len(level[0]) + 1), reset_less=True, name=f"tree_{len(level[0])}_{index // 2}")
                m.d.sync += total.eq(level[index] + level[index + 1])
                following.append(total)
            level = following
        (total,) = level
        stages = steps_under_way(config) - 1
        under_way = Signal(stages)
        m.d.sync += under_way.eq(Cat(self.valid, under_way))
        arrived = under_way[-1]
        m.d.comb += self.idle.eq(~self.valid & (under_way == 0))

        ring = [Signal(ACCUMULATOR_BITS, name=f"accumulator_{index}") for index in range(config.lanes)]
        first = ring[0].as_signed()
        addend = Signal(ACCUMULATOR_BITS)
        with m.If(arrived):
            m.d.comb += addend.eq(total)
        with m.Elif(self.bias):
            m.d.comb += addend.eq(self.word)
        with m.If(arrived | self.bias | self.turn):
            m.d.sync += Cat(ring).eq(Cat(ring[1:], (ring[0] + addend)[:ACCUMULATOR_BITS]))
        with m.If(self.shift):
            m.d.sync += [ring[0].eq(first >> 1), self.up.eq(ring[0][0])]
        with m.If(self.turn | self.clear):
            m.d.sync += self.up.eq(0)
        with m.If(self.clear):
            m.d.sync += Cat(ring).eq(0)

        signs = first[SUM_BITS - 1 :]
        outside = signs.any() & ~signs.all()
        sign = first[-1]
        outermost = Cat((~sign).replicate(SUM_BITS - 1), sign)
        m.d.comb += self.sum.eq(Mux(outside, outermost, first[:SUM_BITS]).as_signed())
        return m
