"""The word model of a lane, on a stream of operands: what `hw.capture` says that its registers take.

Two ways: *free running*, from the operands alone, and *one step ahead*, from the states that the oracle's registers
really had. Words are uint32 arrays by cycle: element k is what a register takes at the edge that ends cycle k, or what
a register outside the banks holds during it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hw.capture import Word, capture
from hw.delays import Bank
from sim.timing.streams import Stream

Words = dict[str, Word]
Capture = Callable[[Bank, Sequence[Word], Sequence[Word], Word], Word]
"""From a bank, its signals in this cycle and in the one before, and its register's value: what it takes."""


@dataclass(frozen=True)
class Stimulus:
    """What registers outside the banks hold in each cycle, shape (cycles, ...): a stream after idle cycles.

    Attributes
    ----------
    products : uint32 array, shape (cycles, vec)
    bias : int32 array, shape (cycles,)
    first : bool array, shape (cycles,)
        Both delayed by the depth of the tree, to meet the sum of their step.
    depth : int
        Levels of the tree.
    idle : int
        Cycles of zeros before the stream.
    """

    products: npt.NDArray[np.uint32]
    bias: npt.NDArray[np.int32]
    first: npt.NDArray[np.bool_]
    depth: int
    idle: int


def stimulus(stream: Stream, lane: int, *, idle: int = 3) -> Stimulus:
    """A lane's part of a stream, after `idle` cycles of zeros and before as many as empty the pipeline."""
    products = stream.products(lane)
    depth = products.shape[1].bit_length() - 1
    before = idle + depth
    return Stimulus(
        np.pad(products, ((idle, depth), (0, 0))),
        # Idle steps start from a bias of zero, so that the history before the stream is zeros throughout.
        np.pad(stream.bias[:, lane], (before, 0)),
        np.pad(stream.first, (before, 0)),
        depth,
        idle,
    )


def signals(given: Stimulus, taken: Mapping[str, Word], bank: Bank) -> list[Word]:
    """The bank's signals by cycle (`bank.signals`), its operands' registers having taken `taken`."""
    if bank.kind == "accumulator":
        bias = given.bias.astype(np.int32).view(np.uint32)
        select = np.where(given.first, np.uint32(0xFFFFFFFF), np.uint32(0)).astype(np.uint32)
        return [_held(taken["accumulator"]), bias, select, _held(taken[f"tree_{given.depth}_0"])]
    level, index = (int(part) for part in bank.name.split("_")[1:])
    if level == 1:
        return [given.products[:, 2 * index], given.products[:, 2 * index + 1]]
    return [_held(taken[f"tree_{level - 1}_{2 * index + side}"]) for side in (0, 1)]


def _held(taken: Word) -> Word:
    """What a register holds in each cycle, from what it takes at the end of each."""
    return np.concatenate([np.zeros(1, np.uint32), taken[:-1]])


def before(word: Word) -> Word:
    """A word one cycle earlier, zero at first."""
    return np.concatenate([np.zeros(1, np.uint32), word[:-1]])


def exact(bank: Bank, words: Sequence[Word]) -> Word:
    """The right sum of a bank's signals."""
    if bank.kind == "accumulator":
        running, bias, select, addend = words
        total = np.where(select != 0, bias, running) + addend
    else:
        total = words[0] + words[1]
    return sign_extend(total, bank.width)


def sign_extend(word: Word, width: int) -> Word:
    """Bits from `width` on as copies of bit `width - 1`."""
    return ((word << np.uint32(32 - width)).view(np.int32) >> np.int32(32 - width)).view(np.uint32)


def masked(period_ps: int) -> Capture:
    """The capture formula at a clock period."""

    def take(bank: Bank, new: Sequence[Word], old: Sequence[Word], held: Word) -> Word:
        return capture(bank, bank.groups(period_ps), new, old)

    return take


def majority(period_ps: int, spread_ps: int = 75) -> Capture:
    """The bitwise majority of the capture formula a little before, at and a little after the clock period."""

    def take(bank: Bank, new: Sequence[Word], old: Sequence[Word], held: Word) -> Word:
        a, b, c = (
            capture(bank, bank.groups(period), new, old)
            for period in (period_ps - spread_ps, period_ps, period_ps + spread_ps)
        )
        return (a & b) | (b & c) | (a & c)

    return take


def naive(period_ps: int) -> Capture:
    """An output bit whose longest path is longer than the period keeps its register's value."""

    def take(bank: Bank, new: Sequence[Word], old: Sequence[Word], held: Word) -> Word:
        latest = np.max([bank.arrival(signal).max(axis=1) for signal in bank.signals], axis=0)
        late = np.uint32(sum(1 << i for i in range(bank.width) if latest[i] > period_ps))
        return sign_extend((exact(bank, new) & ~late) | (held & late), bank.width)

    return take


def one_step_ahead(banks: Sequence[Bank], given: Stimulus, taken: Mapping[str, Word], take: Capture) -> Words:
    """What each bank takes in every cycle, its inputs' registers having taken `taken` (the oracle's)."""
    result = {}
    for bank in banks:
        new = signals(given, taken, bank)
        result[bank.name] = take(bank, new, [before(word) for word in new], _held(taken[bank.name]))
    return result


def free_running(banks: Sequence[Bank], given: Stimulus, period_ps: int) -> Words:
    """What each bank takes in every cycle, from zeros, by the capture formula alone."""
    cycles = len(given.first)
    taken: Words = {}
    for bank in banks:
        groups = bank.groups(period_ps)
        if bank.kind == "tree":
            new = signals(given, taken, bank)
            taken[bank.name] = capture(bank, groups, new, [before(word) for word in new])
            continue
        taken[bank.name] = np.zeros(cycles, np.uint32)
        _, bias, select, addend = signals(given, taken, bank)
        mask = [(group.output, *group.seen) for group in groups]
        zero = np.zeros(1, np.uint32)
        late = [np.concatenate([zero, word]) for word in (bias, select, addend)]
        columns = [word.tolist() for word in (bias, select, addend)]
        earlier = [word.tolist() for word in late]
        running = previous = 0
        words = []
        for k in range(cycles):
            (b, c, s), (b_old, c_old, s_old) = (column[k] for column in columns), (column[k] for column in earlier)
            word = 0
            for output, see_running, see_bias, see_select, see_sum in mask:
                chosen = (c & see_select) | (c_old & ~see_select)
                kept = (running & see_running) | (previous & ~see_running)
                start = (b & see_bias) | (b_old & ~see_bias)
                total = ((start & chosen) | (kept & ~chosen)) + ((s & see_sum) | (s_old & ~see_sum))
                word |= total & output
            previous, running = running, word
            words.append(word)
        taken[bank.name] = np.array(words, np.uint32)
    return taken
