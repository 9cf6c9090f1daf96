"""The memory port in the cycle model: bursts in flight, who is served next, and how beats are spaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from host.schedule.events import Clock, Signal
from hw import axi
from hw.config import Config

SUBCYCLES = 256
"""The simulated memory keeps the times of its beats in these fractions of a cycle."""


@dataclass(frozen=True)
class Memory:
    """Of the accelerator's memory: cycles from a request to its first beat, and bytes a cycle of each channel."""

    latency: int = 32
    bytes_per_cycle: float | None = None

    def interval(self, config: Config) -> int:
        """Fewest sub-cycles between full beats."""
        rate = config.port_bytes if self.bytes_per_cycle is None else min(self.bytes_per_cycle, config.port_bytes)
        return config.port_bytes * SUBCYCLES**2 // max(1, round(SUBCYCLES * rate))


class Pace:
    """When a channel may move its beats: no closer than the interval, but one late cycle may be caught up."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._next = 0

    def beats(self, first: int, count: int, apart: int = 1) -> int:
        """Move beats, the first no earlier than in cycle `first`, the others at least `apart` later; the last's."""
        start = self.after(first)
        self._next = max(self._next, (start - 1) * SUBCYCLES) + self.interval
        if count == 1:
            return start
        if apart * SUBCYCLES >= self.interval:
            last = start + (count - 1) * apart
            self._next = max(self._next + (count - 1) * self.interval, (last - 1) * SUBCYCLES + self.interval)
            return last
        last = max(start + (count - 1) * apart, ceil((self._next + (count - 2) * self.interval) / SUBCYCLES))
        self._next += (count - 1) * self.interval
        return last

    def after(self, cycle: int) -> int:
        """The first cycle from `cycle` on in which a beat may move."""
        return max(cycle, -(-self._next // SUBCYCLES))


@dataclass
class _Asking:
    """A reader's next burst."""

    burst: int
    words: tuple[int, ...]
    held: Callable[[int, int], int]
    granted: Signal
    answer: tuple[int, int, int] | None = None


class ReadChannel:
    """Several readers on one channel: the urgent first, then by their index; bursts are answered in order.

    Beats are taken as they come, but for those of the feature loader, which takes a word a cycle.
    """

    def __init__(self, clock: Clock, config: Config, memory: Memory, readers: int) -> None:
        self._clock = clock
        self._latency = max(1, memory.latency)
        self._pace = Pace(memory.interval(config))
        self._asking: list[_Asking | None] = [None] * readers
        self._ends: deque[int] = deque([-1] * axi.OUTSTANDING, axi.OUTSTANDING)
        self._free = 0  # the address register
        self._end = -1  # of the last beat
        self._deciding = False
        self.urgent = [False] * readers

    def ask(
        self,
        reader: int,
        burst: int,
        words: tuple[int, ...] = (),
        held: Callable[[int, int], int] = lambda begin, end: 0,
    ) -> Iterator[Signal]:
        """Ask for a burst now, and yield until it is granted: then `granted`, `first` and `last` say when that was, and
        when its first beat is there and its last one has been taken.

        Parameters
        ----------
        reader, burst : int
            Position of the reader; beats.
        words : tuple of int
            Words of the first beat, of one between, and of the last, if a reader takes a cycle for each.
        held : callable
            Cycles from `begin` to `end` in which it takes none.
        """
        asking = _Asking(burst, words, held, Signal(self._clock))
        self._asking[reader] = asking
        self._decide_at(self._clock.now)
        yield asking.granted
        assert asking.answer is not None
        self.granted, self.first, self.last = asking.answer

    def _decide_at(self, cycle: int) -> None:
        if not self._deciding:
            self._deciding = True
            self._clock.at_end(cycle, self._decide)

    def _decide(self) -> None:
        self._deciding = False
        now = self._clock.now
        waiting = [index for index, asking in enumerate(self._asking) if asking is not None]
        if not waiting:
            return
        # An entry of the queue is free in the cycle after the oldest burst's last beat.
        free = max(self._free, self._ends[0] + 1)
        if now < free:
            self._decide_at(free)
            return
        reader = min(waiting, key=lambda index: (not self.urgent[index], index))
        asking = self._asking[reader]
        assert asking is not None
        self._asking[reader] = None
        self._free = now + 1
        begin = max(now + 1 + self._latency, self._end + 1)
        first, end = self._beats(begin, asking.burst, asking.words)
        self._end = end + asking.held(first, end)
        while (later := end + asking.held(first, self._end)) > self._end:
            self._end = later
        self._ends.append(self._end)
        asking.answer = now, first, self._end
        asking.granted.fire()
        if len(waiting) > 1:
            self._decide_at(now + 1)

    def _beats(self, begin: int, beats: int, words: tuple[int, ...]) -> tuple[int, int]:
        """Cycles in which the first beat is there, and in which the last has been taken."""
        first = self._pace.after(begin)
        if not words:
            return first, self._pace.beats(begin, beats)
        at_first, middle, at_last = words
        last = self._pace.beats(begin, 1) + at_first - 1
        if beats > 2:
            last = self._pace.beats(last + 1, beats - 2, middle) + middle - 1
        if beats > 1:
            last = self._pace.beats(last + 1, 1) + at_last - 1
        return first, last


class WriteChannel:
    """Two writers on one channel, a burst at a time; the lower index first."""

    def __init__(self, clock: Clock, config: Config, memory: Memory) -> None:
        self._clock = clock
        self._latency = max(1, memory.latency)
        self._pace = Pace(memory.interval(config))
        self._slots = config.port_bytes // config.vec
        self._asking: list[tuple[int, int, Signal] | None] = [None, None]
        self._answers: list[tuple[int, int]] = [(0, 0), (0, 0)]
        self._responses: deque[int] = deque([-1] * axi.OUTSTANDING, axi.OUTSTANDING)
        self._free = 0
        self._deciding = False
        self.idle = 0
        """Cycle from which on every write so far is acknowledged."""

    def ask(self, writer: int, slot: int, words: int) -> Iterator[Signal]:
        """Ask to write a run of words, the first in that slot of its beat; yields until it is granted."""
        granted = Signal(self._clock)
        self._asking[writer] = slot, words, granted
        self._decide_at(self._clock.now)
        yield granted

    def last(self, writer: int) -> int:
        """Cycle in which the last word of the run granted last is written."""
        return self._answers[writer][1]

    def _decide_at(self, cycle: int) -> None:
        if not self._deciding:
            self._deciding = True
            self._clock.at_end(cycle, self._decide)

    def _decide(self) -> None:
        self._deciding = False
        now = self._clock.now
        waiting = [index for index, asking in enumerate(self._asking) if asking is not None]
        if not waiting:
            return
        if now < self._free:
            self._decide_at(self._free)
            return
        writer = waiting[0]
        slot, words, granted = self._asking[writer]  # type: ignore[misc]
        self._asking[writer] = None
        # The address waits while too many bursts are unacknowledged; words move to the packer from the second cycle on.
        address = max(now + 1, self._responses[0] + 1)
        word = now + 2
        last = self._write(word, address + 1, slot, words)
        response = last + self._latency
        response = max(response, self._responses[-1] + 1)
        self._responses.append(response)
        self._free = last + 1
        self.idle = response + 1
        self._answers[writer] = now, last
        granted.fire()
        if len(waiting) > 1:
            self._decide_at(self._free)

    def _write(self, word: int, open_from: int, slot: int, words: int) -> int:
        slots, pace = self._slots, self._pace
        beat = min(words, slots - slot)
        last = word - 1
        while words:
            # The beat goes out with its last word.
            last = pace.beats(max(last + beat, open_from), 1)
            words -= beat
            beat = min(words, slots)
        return last


__all__ = ["Memory", "Pace", "ReadChannel", "WriteChannel"]
