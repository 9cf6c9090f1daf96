"""One lane: VEC multipliers, a registered adder tree, and the accumulator.

Every bank between the products and the requantiser is a two-operand adder between registers, so that its timing
errors can be modelled exactly (the capture formula of the overclocking model).
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

ACCUMULATOR_BITS = 32
FEATURE_BITS = 24
"""Width of a multiplier's feature input, an int8 with its sign extended: the product by an int8 weight then is as wide
as the accumulator without a further extension."""


def sum_delay(vec: int) -> int:
    """Cycles from a lane's operands at its ports to their sum at the accumulator's input."""
    return 2 + exact_log2(vec)


class Lane(wiring.Component):
    """Sum of VEC int8 products a cycle, accumulated in wrapping int32.

    The registers, in order: multiplier inputs (those of the features lie outside, shared by all lanes), products, one
    level per adder of the tree, accumulator.

    Parameters
    ----------
    vec : int

    Members
    -------
    features : In(VEC x signed 24)
        From registers: int8, sign-extended.
    weights : In(VEC x signed 8)
    bias : In(signed 32)
    accumulate : In(1)
        Take the sum into the accumulator in this cycle (aligned with the sum).
    first : In(1)
        Start from the bias instead of the running sum.
    flip : In(32), only with `saboteur`
        XORed into the value that the accumulator takes.
    accumulator : Out(signed 32)
    """

    def __init__(self, vec: int, *, saboteur: bool = False) -> None:
        self._vec = vec
        self._saboteur = saboteur
        members = {
            "features": In(data.ArrayLayout(signed(FEATURE_BITS), vec)),
            "weights": In(data.ArrayLayout(signed(8), vec)),
            "bias": In(signed(ACCUMULATOR_BITS)),
            "accumulate": In(1),
            "first": In(1),
            "accumulator": Out(signed(ACCUMULATOR_BITS)),
        }
        if saboteur:
            members["flip"] = In(ACCUMULATOR_BITS)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The registers are declared as wide as the accumulator: their upper bits are copies of the sign bit, which
        # synthesis merges into one register, and simulators add whole words instead of extending signs.
        level = []
        for index in range(self._vec):
            weight = Signal(signed(8), reset_less=True, name=f"weight_{index}")
            product = Signal(signed(ACCUMULATOR_BITS), reset_less=True, name=f"product_{index}")
            m.d.sync += [weight.eq(self.weights[index]), product.eq(self.features[index] * weight)]
            level.append(product)
        depth = 0
        while len(level) > 1:
            depth += 1
            following = []
            for index in range(0, len(level), 2):
                total = Signal(signed(ACCUMULATOR_BITS), reset_less=True, name=f"tree_{depth}_{index // 2}")
                m.d.sync += total.eq(level[index].as_unsigned() + level[index + 1].as_unsigned())
                following.append(total)
            level = following
        (total,) = level

        result = Mux(self.first, self.bias, self.accumulator).as_unsigned() + total.as_unsigned()
        if self._saboteur:
            result = result[:ACCUMULATOR_BITS] ^ self.flip
        with m.If(self.accumulate):
            m.d.sync += self.accumulator.eq(result)
        return m
