"""When errors really begin: the clock periods at which a table's banks take wrong words on given operands.

Each bank is looked at by itself: its operands are those of a fault-free run, so that what is counted is what a step
adds, not what it inherits. The longest period with an error is the same as for the free-running array, where nothing
has gone wrong before the first error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hw.capture import Word, capture
from hw.delays import Bank, Table, bank_names
from sim.timing import model
from sim.timing.streams import Stream, StreamError

COARSE_PS = 10
RATES = (0.01, 0.1, 0.4)
"""Shares of wrong steps whose periods are reported."""


@dataclass(frozen=True)
class Onset:
    """When a bank, or the whole array, begins to fail.

    Attributes
    ----------
    bank : str
        A bank's name, or "array" for any bank.
    static_ps : int
        Longest path over the lanes.
    dynamic_ps : int
        The longest clock period with a wrong word on the streams; 0: none down to half the longest path.
    rates_ps : dict of float to int
        For each of `RATES`, the longest period with more than this share of wrong steps over all lanes; 0 likewise.
    """

    bank: str
    static_ps: int
    dynamic_ps: int
    rates_ps: dict[float, int]


class Dynamics:
    """A table's banks on streams.

    Raises
    ------
    StreamError
        If a stream is for another array.
    """

    def __init__(self, table: Table, streams: Sequence[Stream]) -> None:
        self._table = table
        self._words: list[dict[str, tuple[list[Word], list[Word], Word]]] = []
        self._steps = sum(len(stream) for stream in streams)
        for stream in streams:
            if stream.weights.shape[1:] != (len(table.lanes), table.vec):
                raise StreamError(
                    f"{stream.name} is for {stream.weights.shape[1]}x{stream.weights.shape[2]} products, "
                    f"the table for {len(table.lanes)}x{table.vec}"
                )
        for lane, banks in enumerate(table.lanes):
            parts: dict[str, list[tuple[list[Word], list[Word], Word]]] = {bank.name: [] for bank in banks}
            for stream in streams:
                given = model.stimulus(stream, lane)
                # With a period that nothing misses, the model computes the fault-free run.
                right = model.free_running(banks, given, max(bank.onset_ps for bank in banks))
                for bank in banks:
                    new = model.signals(given, right, bank)
                    parts[bank.name].append((new, [model.before(word) for word in new], right[bank.name]))
            self._words.append({name: _joined(found) for name, found in parts.items()})

    def wrong(self, lane: int, bank: Bank, period_ps: int) -> npt.NDArray[np.bool_]:
        """In which cycles a bank takes a wrong word."""
        new, old, right = self._words[lane][bank.name]
        if bank.onset_ps <= period_ps:
            return np.zeros(len(right), np.bool_)
        return capture(bank, bank.groups(period_ps), new, old) != right

    def rate(self, name: str, period_ps: int) -> float:
        """Share of wrong steps over all lanes, of a bank by name or of the "array"."""
        count = 0
        for lane, banks in enumerate(self._table.lanes):
            found = [self.wrong(lane, bank, period_ps) for bank in banks if name in (bank.name, "array")]
            count += int(np.logical_or.reduce(found).sum())
        return count / (self._steps * len(self._table.lanes))

    def onset(self, name: str) -> Onset:
        """When a bank, by name, or the "array" begins to fail."""
        static = max(bank.onset_ps for _, bank in self._table if name in (bank.name, "array"))
        lowest = static // 2
        # Errors need not begin at one place and rise from there, so the first one is looked for from above.
        dynamic = static - 1
        while dynamic > lowest and not self.rate(name, dynamic):
            dynamic -= COARSE_PS
        if dynamic <= lowest:
            return Onset(name, static, 0, dict.fromkeys(RATES, 0))
        for period in range(min(static - 1, dynamic + COARSE_PS - 1), dynamic, -1):
            if self.rate(name, period):
                dynamic = period
                break
        return Onset(name, static, dynamic, {rate: self._period(name, rate, lowest, dynamic) for rate in RATES})

    def _period(self, name: str, rate: float, low: int, high: int) -> int:
        if self.rate(name, high) > rate:
            return high
        if self.rate(name, low) <= rate:
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            if self.rate(name, middle) > rate:
                low = middle
            else:
                high = middle
        return low

    def onsets(self) -> list[Onset]:
        """Of the array, then of every bank, by name over all lanes."""
        return [self.onset(name) for name in ("array", *bank_names(self._table.vec))]


def _joined(parts: list[tuple[list[Word], list[Word], Word]]) -> tuple[list[Word], list[Word], Word]:
    new = [np.concatenate(words) for words in zip(*(part[0] for part in parts), strict=True)]
    old = [np.concatenate(words) for words in zip(*(part[1] for part in parts), strict=True)]
    return new, old, np.concatenate([part[2] for part in parts])
