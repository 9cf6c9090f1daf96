"""The requantiser of one lane: accumulator to int8, in four registered stages."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lane import ACCUMULATOR_BITS


class Requantise(wiring.Component):
    """`clamp((acc + (1 << (shift-1))) >> shift, -128, upper)`, then ReLU: round, shift coarse, shift fine, saturate.

    Attributes
    ----------
    delay : int
        Cycles from `accumulator` to `result`.

    Members
    -------
    accumulator : In(signed 32)
    shift : In(5)
        Aligned with `accumulator`.
    valid : In(4)
        Bit i: stage i takes a new value in this cycle.
    relu : In(1), upper : In(7)
        Lowest result is 0; highest result. Constant while values are in flight.
    result : Out(signed 8)
    """

    delay = 4

    def __init__(self) -> None:
        super().__init__(
            {
                "accumulator": In(signed(ACCUMULATOR_BITS)),
                "shift": In(5),
                "valid": In(4),
                "relu": In(1),
                "upper": In(7),
                "result": Out(signed(8)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = ACCUMULATOR_BITS + 1  # the rounding addition must not wrap
        rounded = Signal(signed(bits), reset_less=True)
        rounded_shift = Signal(5, reset_less=True)
        coarse = Signal(signed(bits), reset_less=True)
        coarse_shift = Signal(3, reset_less=True)
        fine = Signal(signed(bits), reset_less=True)

        half = Signal(ACCUMULATOR_BITS)  # 2 ** (shift - 1), or 0
        m.d.comb += half.eq((Const(1) << self.shift) >> 1)
        with m.If(self.valid[0]):
            m.d.sync += [
                rounded.eq(self.accumulator + Cat(half, Const(0, 1)).as_signed()),
                rounded_shift.eq(self.shift),
            ]
        with m.If(self.valid[1]):
            m.d.sync += [
                coarse.eq(rounded >> Cat(Const(0, 3), rounded_shift[3:])),
                coarse_shift.eq(rounded_shift[:3]),
            ]
        with m.If(self.valid[2]):
            m.d.sync += fine.eq(coarse >> coarse_shift)
        low = Signal(signed(8))
        m.d.comb += low.eq(Mux(self.relu, 0, -128))
        with m.If(self.valid[3]):
            with m.If(fine > self.upper):
                m.d.sync += self.result.eq(self.upper)
            with m.Elif(fine < low):
                m.d.sync += self.result.eq(low)
            with m.Else():
                m.d.sync += self.result.eq(fine[:8].as_signed())
        return m
