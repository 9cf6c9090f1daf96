"""What the engine calculates: one adder for all of it, the bounds of bytes, and a mask."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.microcode.instructions import Op

REGISTER_BITS = 32
"""Addresses, counts, biases, outputs of up to four lanes, and coordinates with the padding around them."""


class Arithmetic(wiring.Component):
    """The result of an instruction that calculates (`Op`), in the same cycle.

    Parameters
    ----------
    lanes : int
        Bytes that MAX and MIN choose from; those above are zero.

    Members
    -------
    op : In(4)
    acc, value : In(REGISTER_BITS)
    up : In(1)
        What LOAD loads is one more.
    result : Out(REGISTER_BITS)
    carry : Out(1)
        Of SUB: it does not borrow.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        super().__init__(
            {
                "op": In(4),
                "acc": In(REGISTER_BITS),
                "value": In(REGISTER_BITS),
                "up": In(1),
                "result": Out(REGISTER_BITS),
                "carry": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        left, right, one = Signal(REGISTER_BITS), Signal(REGISTER_BITS), Signal()
        total = Signal(REGISTER_BITS + 1)
        m.d.comb += [
            left.eq(self.acc),
            right.eq(self.value),
            total.eq(left + right + one),
            self.result.eq(total),
            self.carry.eq(total[-1]),
        ]
        with m.Switch(self.op):
            with m.Case(Op.LOAD):
                m.d.comb += [left.eq(0), one.eq(self.up)]
            with m.Case(Op.SUB):
                m.d.comb += [right.eq(~self.value), one.eq(1)]
            with m.Case(Op.AND):
                m.d.comb += self.result.eq(self.acc & self.value)
            with m.Case(Op.MAX, Op.MIN):
                m.d.comb += self.result.eq(self._chosen(self.op == Op.MIN))
            with m.Case(Op.STORE):
                m.d.comb += right.eq(0)
            with m.Case(Op.UP):
                m.d.comb += left.eq(1)
            with m.Case(Op.DOWN):
                m.d.comb += left.eq(~0)
        return m

    def _chosen(self, smaller: Value) -> Value:
        """The larger of each of the signed bytes, or the smaller."""
        chosen = []
        for lane in range(self._lanes):
            acc, value = (side.word_select(lane, 8).as_signed() for side in (self.acc, self.value))
            chosen.append(Mux((acc > value) ^ smaller, acc, value)[:8])
        return Cat(chosen)
