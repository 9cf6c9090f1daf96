"""What a bank's register captures when the clock edge comes before some of its operand bits: the capture formula.

Bits that have not arrived are still those of the step before; the adder adds what it sees. For an adder between
registers this is what a gate-level simulation of the routed netlist with transport delays gives, bit for bit
(`redline timing validate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hw.delays import Bank, Group

Word = npt.NDArray[np.uint32]


def capture(bank: Bank, groups: tuple[Group, ...], new: Sequence[Word], old: Sequence[Word]) -> Word:
    """The words that the bank's register takes.

    Parameters
    ----------
    bank : Bank
    groups : tuple of Group
        `bank.groups(period_ps)`.
    new, old : sequence of uint32 arrays, all of one shape
        The bank's signals (`bank.signals`) in this step and in the step before. A tree adder: (a, b). The accumulator:
        (running sum, bias, select, sum), with a select of all ones where an output starts, else 0.

    Returns
    -------
    uint32 array
        Bits from `bank.width` on are copies of bit `bank.width - 1`.
    """
    result = np.zeros_like(new[0])
    for group in groups:
        seen = [
            (now & np.uint32(mask)) | (before & np.uint32(~mask & 0xFFFFFFFF))
            for now, before, mask in zip(new, old, group.seen, strict=True)
        ]
        if bank.kind == "accumulator":
            running, bias, select, addend = seen
            operand = (select & bias) | (~select & running)
        else:
            operand, addend = seen
        result |= (operand + addend) & np.uint32(group.output)
    unused = np.uint32(32 - bank.width)
    return ((result << unused).view(np.int32) >> unused.astype(np.int32)).view(np.uint32)
