"""Late operand bits and stuck bits, as the instrumentation reads them from memory: one list of words a launch.

The host makes the list (`encode`) from `BankMasks`; the loader writes each word to its bank. What no word names is in
time, and not stuck: a launch without a list is free of such faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.lib import data

from hw.delays import bank_names

Words = npt.NDArray[np.uint32]

WORD_BYTES = 8

DTYPE = np.dtype(
    {
        "names": ["word", "lane", "group", "operand", "bank"],
        "formats": ["<u4", "u1", "u1", "u1", "u1"],
        "offsets": [0, 4, 5, 6, 7],
        "itemsize": WORD_BYTES,
    }
)
"""numpy dtype of one entry of the list.

word
    What to write.
lane, group, bank
    Where: the bank's position in `bank_names`. Of USED, lane and group are 0.
operand
    Which of the bank's words (`OPERANDS`).
"""

LAYOUT = data.StructLayout({"word": 32, "lane": 8, "group": 8, "operand": 8, "bank": 8})
"""Amaranth layout of one entry."""

OPERANDS = {"a": 0, "s": 1, "outputs": 2, "bias": 3, "select": 4, "keep": 5, "set": 6, "used": 7, "sign": 8}
"""Words of a bank.

a, s, bias, select
    Of each lane and group: the bits of that operand that the group's output bits see new. Only the accumulator has
    `bias` and `select`; its `a` is the running sum.
outputs
    Of each lane and group: the output bits of the group. All groups together hold every bit once.
keep, set
    Of each lane: the register takes `value & keep | set`.
sign
    Of each lane, but not of the accumulator: the register's highest bit; those above it are copies of it.
used
    Groups in use, the same for all lanes; 0: the bank is a plain register.
"""

MOST_GROUPS = 32
"""A group holds at least one output bit: no bank can need more."""


@dataclass(frozen=True, eq=False)
class BankMasks:
    """What is late and what is stuck in one bank.

    Attributes
    ----------
    a, s, outputs : uint32 arrays, shape (LANES, groups)
        See `OPERANDS`.
    bias, select : uint32 arrays, shape (LANES, groups), or None
        Of the accumulator.
    keep, set, sign : uint32 arrays, shape (LANES,)
    """

    a: Words
    s: Words
    outputs: Words
    bias: Words | None
    select: Words | None
    keep: Words
    set: Words
    sign: Words

    @property
    def groups(self) -> int:
        """Groups of output bits, of the lane that has most."""
        return self.outputs.shape[1]


def encode(banks: Mapping[str, BankMasks], vec: int) -> npt.NDArray[np.void]:
    """The list for the loader, records of `DTYPE`.

    Parameters
    ----------
    banks : mapping of bank name to BankMasks
        Only those banks in which something is late or stuck.
    vec : int
    """
    numbers = {name: number for number, name in enumerate(bank_names(vec))}
    parts: list[npt.NDArray[np.void]] = []
    for name, masks in banks.items():
        number, groups = numbers[name], np.arange(masks.groups)
        for operand in ("a", "s", "outputs", "bias", "select"):
            words = getattr(masks, operand)
            if words is not None:
                lanes = np.arange(len(words))[:, None]
                parts.append(_records(words, lanes, groups, OPERANDS[operand], number))
        for operand in ("keep", "set", "sign"):
            words = getattr(masks, operand)
            parts.append(_records(words, np.arange(len(words)), 0, OPERANDS[operand], number))
        # Last: the bank is complete when it comes into use.
        parts.append(_records(np.array([masks.groups], np.uint32), 0, 0, OPERANDS["used"], number))
    return joined(parts)


def joined(parts: Sequence[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """Lists one behind the other."""
    return np.concatenate([np.zeros(0, DTYPE), *parts])


def _records(words: Words, lane: npt.ArrayLike, group: npt.ArrayLike, operand: int, bank: int) -> npt.NDArray[np.void]:
    records = np.zeros(words.shape, DTYPE)
    records["word"], records["lane"], records["group"] = words, lane, group
    records["operand"], records["bank"] = operand, bank
    return records.reshape(-1)
