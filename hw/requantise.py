"""The requantiser of one lane: accumulator to int8, in four registered stages, or six with PipeCNN's bias."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lane import ACCUMULATOR_BITS


def requantise_delay(*, pipecnn: bool) -> int:
    """Cycles from an accumulator to its result."""
    return 6 if pipecnn else 4


class Requantise(wiring.Component):
    """`clamp((acc + (1 << (shift-1))) >> shift, -128, upper)`, then ReLU: round, shift coarse, shift fine, saturate.

    PipeCNN's arithmetic adds the bias to the saturated value, in 8 bits that wrap, unless it was out of range: round,
    shift coarse, shift fine, saturate at -128 and 127, add, then ReLU and `upper`.

    Parameters
    ----------
    pipecnn : bool

    Attributes
    ----------
    delay : int
        Cycles from `accumulator` to `result`.

    Members
    -------
    accumulator : In(signed 32)
    shift : In(5)
        Aligned with `accumulator`.
    bias : In(signed 8), with `pipecnn`
        Aligned with `accumulator`.
    valid : In(delay)
        Bit i: stage i takes a new value in this cycle.
    relu : In(1), upper : In(7)
        Lowest result is 0; highest result. Constant while values are in flight.
    result : Out(signed 8)
    """

    def __init__(self, *, pipecnn: bool = False) -> None:
        self._pipecnn = pipecnn
        self.delay = requantise_delay(pipecnn=pipecnn)
        members = {
            "accumulator": In(signed(ACCUMULATOR_BITS)),
            "shift": In(5),
            "valid": In(self.delay),
            "relu": In(1),
            "upper": In(7),
            "result": Out(signed(8)),
        }
        if pipecnn:
            members["bias"] = In(signed(8))
        super().__init__(members)

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
        last = fine
        if self._pipecnn:
            last = self._add_bias(m, fine)
        with m.If(self.valid[-1]):
            with m.If(last > self.upper):
                m.d.sync += self.result.eq(self.upper)
            with m.Elif(last < low):
                m.d.sync += self.result.eq(low)
            with m.Else():
                m.d.sync += self.result.eq(last[:8].as_signed())
        return m

    def _add_bias(self, m: Module, fine: Signal) -> Signal:
        """PipeCNN's two stages between the shifted value and the last one: saturate, add."""
        bias = self.bias
        for stage in range(3):
            later = Signal(signed(8), name=f"bias_{stage}", reset_less=True)
            with m.If(self.valid[stage]):
                m.d.sync += later.eq(bias)
            bias = later
        saturated, addend, total = (
            Signal(signed(8), name=name, reset_less=True) for name in ("saturated", "addend", "total")
        )
        with m.If(self.valid[3]):
            m.d.sync += [saturated.eq(fine[:8].as_signed()), addend.eq(bias)]
            with m.If(fine > 127):
                m.d.sync += [saturated.eq(127), addend.eq(0)]
            with m.Elif(fine < -128):
                m.d.sync += [saturated.eq(-128), addend.eq(0)]
        with m.If(self.valid[4]):
            m.d.sync += total.eq(saturated + addend)
        return total
