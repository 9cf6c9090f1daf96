"""A lane with late bits, one bit at a time, in plain Python: it knows delays, but no masks, groups or words."""

from __future__ import annotations

from collections.abc import Sequence

from hw.delays import Bank, Table

StuckBits = dict[tuple[int, str, int], int]
"""Value by (lane, bank, bit)."""


def captured(bank: Bank, period_ps: int, new: dict[str, int], old: dict[str, int]) -> int:
    """The bits that a bank's register takes, as one number of `bank.width` bits.

    Parameters
    ----------
    new, old : dict of int
        Each signal in this step and in the step before, as bit patterns; the select is one bit.
    """
    result = 0
    for i in range(bank.width):
        carry = 0
        for j in range(i + 1):

            def bit(signal: str, j: int = j, i: int = i) -> int:
                in_time = bank.arrival(signal)[i][j] <= period_ps
                value = new[signal] if in_time else old[signal]
                return value & 1 if signal == "select" else value >> j & 1

            if bank.kind == "accumulator":
                a, b = bit("bias") if bit("select") else bit("accumulator"), bit("sum")
            else:
                a, b = bit("a"), bit("b")
            total = a + b + carry
            carry = total >> 1
        result |= (total & 1) << i
    return result


class GoldenLane:
    """One lane of a table at a clock.

    Parameters
    ----------
    table : Table
    lane : int
    period_ps : int
    stuck : dict
        Bits that keep a value.
    """

    def __init__(self, table: Table, lane: int, period_ps: int, stuck: StuckBits | None = None) -> None:
        self.table, self.lane, self.period = table, lane, period_ps
        self.stuck = {where[1:]: value for where, value in (stuck or {}).items() if where[0] == lane}
        self.value = 0
        self.restart()

    def restart(self) -> None:
        """An output row begins: everything before counts as zero."""
        self.history: dict[str, dict[str, int]] = {}
        self.value = 0

    def step(self, products: Sequence[int], bias: int, first: bool, flip: int = 0) -> int:
        """One step; the accumulator after it, signed."""
        level, depth = [product & 0xFFFFFFFF for product in products], 0
        while len(level) > 1:
            depth += 1
            level = [
                self._register(f"tree_{depth}_{at // 2}", {"a": level[at], "b": level[at + 1]})
                for at in range(0, len(level), 2)
            ]
        operands = {"accumulator": self.value, "bias": bias & 0xFFFFFFFF, "select": int(first), "sum": level[0]}
        self.value = self._register("accumulator", operands, flip)
        return self.value - (self.value >> 31 << 32)

    def _register(self, name: str, new: dict[str, int], flip: int = 0) -> int:
        bank = self.table.bank(self.lane, name)
        old = self.history.get(name, dict.fromkeys(new, 0))
        self.history[name] = new
        value = captured(bank, self.period, new, old) ^ flip
        for (stuck_bank, bit), stuck in self.stuck.items():
            if stuck_bank == name:
                value = value & ~(1 << bit) | stuck << bit
        # Copies of the highest bit above it.
        if value >> bank.width - 1:
            value |= 0xFFFFFFFF << bank.width
        return value & 0xFFFFFFFF
