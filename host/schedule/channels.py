"""The memory port in the cycle model: bursts in flight, who is served next, and how beats are spaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

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

    def beat(self, config: Config) -> float:
        """Cycles of a full beat."""
        rate = config.port_bytes if self.bytes_per_cycle is None else min(self.bytes_per_cycle, config.port_bytes)
        return config.port_bytes / rate

    def interval(self, config: Config) -> int:
        """Fewest sub-cycles between full beats."""
        rate = round(SUBCYCLES * config.port_bytes / self.beat(config))
        return config.port_bytes * SUBCYCLES**2 // max(1, rate)


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


Answer = Callable[[int, int], None]
"""Told in which cycles a burst's first beat is there and its last one has been taken, by then at the latest."""


@dataclass
class _Asking:
    """A reader's next burst."""

    burst: int
    answer: Answer
    words: tuple[int, int, int] | None
    held: Callable[[int, int], int] | None
    granted: Signal


class _Channel:
    """One address register that those who ask share: it decides at the end of a cycle whose burst goes next.

    Parameters
    ----------
    askers : int
        How many share it.
    """

    def __init__(self, clock: Clock, config: Config, memory: Memory, askers: int) -> None:
        self._clock = clock
        self._latency = max(1, memory.latency)
        self._pace = Pace(memory.interval(config))
        self._asking: list[Any] = [None] * askers
        self._free = 0  # the address register, from this cycle on
        self._deciding = False

    def _ask(self, asker: int, asking: Any) -> None:
        self._asking[asker] = asking
        self._decide_at(self._clock.now)

    def _decide_at(self, cycle: int) -> None:
        if not self._deciding:
            self._deciding = True
            self._clock.at_end(cycle, self._decide)

    def _decide(self) -> None:
        self._deciding = False
        waiting = [index for index, asking in enumerate(self._asking) if asking is not None]
        free = self._next() if waiting else None
        if free is None:
            return
        if self._clock.now < free:
            self._decide_at(free)
            return
        chosen = min(waiting, key=self._precedence)
        asking, self._asking[chosen] = self._asking[chosen], None
        self._grant(chosen, asking)
        if len(waiting) > 1:
            self._decide_at(self._free)

    def _next(self) -> int | None:
        """The first cycle in which a burst can be granted; None if something that is to come will ask again."""
        return self._free

    def _precedence(self, asker: int) -> tuple[bool, int]:
        return False, asker

    def _grant(self, asker: int, asking: Any) -> None:
        raise NotImplementedError


class ReadChannel(_Channel):
    """Several readers on one channel: the urgent first, then by their index; bursts are answered in order."""

    def __init__(self, clock: Clock, config: Config, memory: Memory, readers: int) -> None:
        super().__init__(clock, config, memory, readers)
        self._in_flight: deque[tuple[int, _Asking]] = deque()
        self._moving: tuple[int, int] | None = None
        """Cycles of the first and the last beat of the oldest burst in flight, if the reader held none up."""
        self._settling = False
        self._ends: list[int] = []
        self.granted = 0
        """Cycle in which the latest burst was granted."""
        self.urgent: list[Callable[[], bool]] = [lambda: False] * readers
        """Whether a reader's burst goes before others', asked when one is chosen."""

    def ask(
        self,
        reader: int,
        burst: int,
        answer: Answer,
        words: tuple[int, int, int] | None = None,
        held: Callable[[int, int], int] | None = None,
    ) -> Iterator[Signal]:
        """Ask for a burst now, and yield until it is granted.

        Parameters
        ----------
        reader, burst : int
            Position of the reader; beats.
        answer : callable
        words : tuple of int
            Words of the first beat, of one between, and of the last, if the reader takes a cycle for each.
        held : callable
            Cycles of those from `begin` to `end` in which it takes none, as far as they are past.
        """
        asking = _Asking(burst, answer, words, held, Signal(self._clock))
        self._ask(reader, asking)
        yield asking.granted

    def _next(self) -> int | None:
        oldest = len(self._ends) + len(self._in_flight) - axi.OUTSTANDING
        if oldest >= len(self._ends):
            return None  # the queue is full, and decides when its oldest burst has ended
        # Its entry is free in the cycle after its last beat.
        return max(self._free, self._ends[oldest] + 1) if oldest >= 0 else self._free

    def _precedence(self, asker: int) -> tuple[bool, int]:
        return not self.urgent[asker](), asker

    def _grant(self, asker: int, asking: _Asking) -> None:
        now = self._clock.now
        self._free = now + 1
        self._in_flight.append((now + 1 + self._latency, asking))
        self.granted = now
        asking.granted.fire()
        if not self._settling:
            self._move()

    def _move(self) -> None:
        """Find out when the bursts in flight move, as far as that can be known now."""
        self._settling = False
        while self._in_flight:
            due, asking = self._in_flight[0]
            if self._moving is None:
                self._moving = self._beats(max(due, self._ends[-1] + 1 if self._ends else 0), asking)
            first, last = self._moving
            if asking.held is not None:
                end = last
                while (later := last + asking.held(first, end)) > end:
                    end = later
                if self._clock.now < end:
                    self._settling = True
                    self._clock.at_end(end, self._move)
                    return
                last = end
            self._moving = None
            self._in_flight.popleft()
            self._ends.append(last)
            asking.answer(first, last)
            self._decide_at(self._clock.now)

    def _beats(self, begin: int, asking: _Asking) -> tuple[int, int]:
        """Cycles in which the first beat is there, and in which the last has been taken."""
        first = self._pace.after(begin)
        if asking.words is None:
            return first, self._pace.beats(begin, asking.burst)
        at_first, middle, at_last = asking.words
        last = self._pace.beats(begin, 1) + at_first - 1
        if asking.burst > 2:
            last = self._pace.beats(last + 1, asking.burst - 2, middle) + middle - 1
        if asking.burst > 1:
            last = self._pace.beats(last + 1, 1) + at_last - 1
        return first, last


class WriteChannel(_Channel):
    """Two writers on one channel, a burst at a time; the lower index first."""

    def __init__(self, clock: Clock, config: Config, memory: Memory) -> None:
        super().__init__(clock, config, memory, 2)
        self._slots = config.port_bytes // config.vec
        self._answers: list[tuple[int, int]] = [(0, 0), (0, 0)]
        self._responses: deque[int] = deque([-1] * axi.OUTSTANDING, axi.OUTSTANDING)
        self.idle = 0
        """Cycle from which on every write so far is acknowledged."""

    def ask(self, writer: int, slot: int, words: int) -> Iterator[Signal]:
        """Ask to write a run of words, the first in that slot of its beat; yields until it is granted."""
        granted = Signal(self._clock)
        self._ask(writer, (slot, words, granted))
        yield granted

    def last(self, writer: int) -> int:
        """Cycle in which the last word of the run granted last is written."""
        return self._answers[writer][1]

    def _grant(self, asker: int, asking: tuple[int, int, Signal]) -> None:
        now = self._clock.now
        slot, words, granted = asking
        # The address waits while too many bursts are unacknowledged; words move to the packer from the second cycle on.
        address = max(now + 1, self._responses[0] + 1)
        word = now + 2
        last = self._write(word, address + 1, slot, words)
        response = last + self._latency
        response = max(response, self._responses[-1] + 1)
        self._responses.append(response)
        self._free = last + 1
        self.idle = response + 1
        self._answers[asker] = now, last
        granted.fire()

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
