"""The requantiser of one lane: accumulator to int8, in six registered stages, or eight with PipeCNN's bias.

Shifts before it rounds: `(acc + (1 << (s-1))) >> s` is `(((2 * acc) >> s) + 1) >> 1`, also for s = 0. Then the addition
is a short one, and no stage has the shift's decoding and a long carry chain in one: the requantiser is faster than the
accumulators.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lane import ACCUMULATOR_BITS

SHIFTS = ((3, 2), (1, 2), (0, 1))
"""Bits of the shift amount that each shifting stage takes: the lowest, and how many."""
KEPT = 10
"""Bits of a shifted value, with one bit of fraction, that are rounded; of the others only the overflow."""


def requantise_delay(*, pipecnn: bool) -> int:
    """Cycles from an accumulator to its result."""
    return 8 if pipecnn else 6


class Requantise(wiring.Component):
    """`clamp((acc + (1 << (shift-1))) >> shift, -128, upper)`, then ReLU: shift in three, round, compare, choose.

    PipeCNN's arithmetic adds the bias to the saturated value, in 8 bits that wrap, unless it was out of range: shift
    in three, round, saturate at -128 and 127, add, then compare and choose for ReLU and `upper`.

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
        # Each stage looks at those bits of the stage before that the shifts to come cannot bring into the kept ones: if
        # they are not all copies of the sign, the value will not fit.
        value, shift = Cat(Const(0, 1), self.accumulator).as_signed(), self.shift  # one bit of fraction
        negative, wide = value[-1], Const(0, 1)
        for stage, (lowest, count) in enumerate(SHIFTS):
            width = len(value) if stage == 0 else KEPT + (1 << (lowest + count)) - 1
            shifted = Signal(signed(width), reset_less=True, name=f"shifted_{stage}")
            rest = Signal(lowest, reset_less=True, name=f"shift_{stage}")
            sign, wider = (Signal(reset_less=True, name=f"{name}_{stage}") for name in ("sign", "wide"))
            with m.If(self.valid[stage]):
                m.d.sync += [
                    shifted.eq(value[:width].as_signed() >> Cat(Const(0, lowest), shift[lowest : lowest + count])),
                    rest.eq(shift[:lowest]),
                    sign.eq(negative),
                    wider.eq(wide | _overflows(value, width)),
                ]
            value, shift, negative, wide = shifted, rest, sign, wider

        # Rounded, if the value fits; else only on which side it does not.
        rounded = Signal(signed(KEPT), reset_less=True)
        above, below = Signal(reset_less=True), Signal(reset_less=True)
        too_wide = wide | _overflows(value, KEPT)
        with m.If(self.valid[len(SHIFTS)]):
            m.d.sync += [
                rounded.eq((value[:KEPT].as_signed() + 1) >> 1),
                above.eq(~negative & too_wide),
                below.eq(negative & too_wide),
            ]
        if self._pipecnn:
            rounded = self._add_bias(m, rounded, above, below)
            above, below = Const(0, 1), Const(0, 1)

        # Above `upper`: beyond 7 bits, or in 7 bits (the only comparison that needs a carry chain).
        kept = Signal(8, reset_less=True)
        names = ("beyond", "plain", "exceeds", "too_low")
        beyond, plain, exceeds, too_low = (Signal(reset_less=True, name=name) for name in names)
        negative, beyond_bits = rounded[-1], rounded[7:-1]
        with m.If(self.valid[-2]):
            m.d.sync += [
                kept.eq(rounded[:8]),
                beyond.eq(above | (~below & ~negative & beyond_bits.any())),
                plain.eq(~above & ~below & ~negative),
                exceeds.eq(rounded[:7] > self.upper),
                too_low.eq(below | (~above & negative & (self.relu | ~beyond_bits.all()))),
            ]
        with m.If(self.valid[-1]):
            m.d.sync += self.result.eq(kept.as_signed())
            with m.If(beyond | (plain & exceeds)):
                m.d.sync += self.result.eq(self.upper)
            with m.Elif(too_low):
                m.d.sync += self.result.eq(Mux(self.relu, 0, -128))
        return m

    def _add_bias(self, m: Module, rounded: Signal, above: Signal, below: Signal) -> Signal:
        """PipeCNN's two stages between the rounded value and the comparison: saturate, add."""
        bias = self.bias
        for stage in range(len(SHIFTS) + 1):
            later = Signal(signed(8), name=f"bias_{stage}", reset_less=True)
            with m.If(self.valid[stage]):
                m.d.sync += later.eq(bias)
            bias = later
        saturated, addend, total = (
            Signal(signed(8), name=name, reset_less=True) for name in ("saturated", "addend", "total")
        )
        with m.If(self.valid[len(SHIFTS) + 1]):
            m.d.sync += [saturated.eq(rounded[:8].as_signed()), addend.eq(bias)]
            with m.If(above | (~below & ~rounded[-1] & rounded[7:-1].any())):
                m.d.sync += [saturated.eq(127), addend.eq(0)]
            with m.Elif(below | (rounded[-1] & ~rounded[7:-1].all())):
                m.d.sync += [saturated.eq(-128), addend.eq(0)]
        with m.If(self.valid[len(SHIFTS) + 2]):
            m.d.sync += total.eq(saturated + addend)
        return total


def _overflows(value: Value, width: int) -> Value:
    """Whether a signed value does not fit into its low `width` bits."""
    beyond = value[width - 1 :]
    return beyond.any() & ~beyond.all()
