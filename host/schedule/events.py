"""A discrete-event kernel for the cycle model: processes are generators that wait for a cycle or for a signal."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator

Process = Generator["int | Signal", None, None]
"""Yields the cycle to go on in (no earlier than now), or the signal to wait for."""


class Signal:
    """Something that processes wait for: when it fires, all that wait go on in the same cycle, and look again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[Process] = []

    def wait(self, process: Process) -> None:
        self._waiting.append(process)

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for process in waiting:
            self._clock.resume(self._clock.now, process)


class Clock:
    """Runs processes in the order of their cycles; those of one cycle in the order in which they asked.

    What is done `at_end` of a cycle sees everything that processes do in it: arbiters decide there.
    """

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, int, Process | None, Callable[[], None] | None]] = []
        self._count = 0

    def resume(self, cycle: int, process: Process) -> None:
        """Let a process go on in a cycle."""
        self._count += 1
        heapq.heappush(self._heap, (max(cycle, self.now), 0, self._count, process, None))

    def at_end(self, cycle: int, call: Callable[[], None]) -> None:
        """Call a function at the end of a cycle."""
        self._count += 1
        heapq.heappush(self._heap, (max(cycle, self.now), 1, self._count, None, call))

    def run(self) -> None:
        """Until no process is left that waits for a cycle."""
        while self._heap:
            self.now, _, _, process, call = heapq.heappop(self._heap)
            if call is not None:
                call()
            if process is not None:
                target = next(process, None)
                if isinstance(target, Signal):
                    target.wait(process)
                elif target is not None:
                    self.resume(target, process)


__all__ = ["Clock", "Process", "Signal"]
