"""The memory port in the cycle model, against the simulated memory's own rule, a beat at a time."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.schedule.channels import Memory, Pace, ReadChannel
from host.schedule.events import Clock, Process
from hw import axi
from hw.config import Config


class Rate:
    """sim/native/memory.cpp's spacing of beats, as it stands there."""

    def __init__(self, nbytes: int, rate: int) -> None:
        self.interval, self.next = (nbytes << 16) // rate, 0

    def free(self, now: int) -> bool:
        return self.next <= now << 8

    def take(self, now: int) -> None:
        self.next = max(self.next, 0 if now == 0 else (now - 1) << 8) + self.interval


@given(
    nbytes=st.sampled_from([4, 16, 64]),
    rate=st.floats(0.5, 80),
    runs=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_beats_are_spaced_as_the_simulated_memory_spaces_them(
    nbytes: int, rate: float, runs: list[tuple[int, int, int]]
) -> None:
    """Runs of beats: (idle cycles before, beats, cycles that each takes at least)."""
    config = Config(lanes=16, vec=4, port_bits=8 * nbytes)
    pace = Pace(Memory(1, rate).interval(config))
    memory = Rate(nbytes, max(1, round(256 * min(rate, nbytes))))
    now = 1
    for idle, count, apart in runs:
        begin = now = now + idle
        for beat in range(count):
            while not memory.free(now):
                now += 1
            memory.take(now)
            last, now = now, now + (apart if beat < count - 1 else 1)
        assert pace.beats(begin, count, apart) == last


def granted(urgent: list[bool], asking: list[tuple[int, int]], latency: int = 10) -> list[tuple[int, int, int, int]]:
    """(reader, granted, first beat, last beat) of one burst each, asked for by reader `index` in a cycle."""
    clock, found = Clock(), []
    channel = ReadChannel(clock, Config(), Memory(latency), len(asking))
    channel.urgent = [lambda it=it: it for it in urgent]

    def reader(index: int, cycle: int, beats: int) -> Process:
        yield cycle
        answers: list[tuple[int, int]] = []
        yield from channel.ask(index, beats, lambda first, last: answers.append((first, last)))
        found.append((index, channel.granted, answers))

    for index, (cycle, beats) in enumerate(asking):
        clock.resume(0, reader(index, cycle, beats))
    clock.run()
    return [(index, cycle, *answers[0]) for index, cycle, answers in found]


def test_a_burst_is_answered_after_the_latency_and_in_order() -> None:
    assert granted([False] * 2, [(5, 4), (6, 3)]) == [(0, 5, 16, 19), (1, 6, 20, 22)]


@pytest.mark.parametrize("urgent", [(), (1,), (2,), (1, 2)])
def test_the_urgent_reader_wins_then_the_lower_index(urgent: tuple[int, ...]) -> None:
    order = [index for index, *_ in granted([index in urgent for index in range(3)], [(5, 1)] * 3)]
    assert order == sorted(range(3), key=lambda index: (index not in urgent, index))


def test_no_more_bursts_are_in_flight_than_the_queue_holds() -> None:
    clock, grants, ends = Clock(), [], []
    channel = ReadChannel(clock, Config(), Memory(500), 1)

    def reader() -> Process:
        for _ in range(3 * axi.OUTSTANDING):
            yield from channel.ask(0, 2, lambda _, last: ends.append(last))
            grants.append(channel.granted)
            yield channel.granted + 1

    clock.resume(0, reader())
    clock.run()
    for at, cycle in enumerate(grants):
        assert sum(end >= cycle for end in ends[:at]) < axi.OUTSTANDING
    assert ends[-1] > 3 * 500, "every sixteen bursts wait for the latency"


def test_words_that_the_reader_cannot_take_hold_up_all_that_follow() -> None:
    clock, ends = Clock(), []
    channel = ReadChannel(clock, Config(), Memory(10), 2)
    busy = range(17, 22)  # the reader is held in these cycles, and knows no earlier

    def held(begin: int, end: int) -> int:
        return sum(begin <= cycle <= min(end, clock.now) for cycle in busy)

    def reader(index: int, cycle: int, unpacks: bool) -> Process:
        yield cycle
        told = partial(lambda index, first, last: ends.append((index, first, last)), index)
        yield from channel.ask(index, 2, told, (1, 2, 2) if unpacks else None, held if unpacks else None)

    clock.resume(0, reader(0, 5, True))
    clock.resume(0, reader(1, 6, False))
    clock.run()
    # Words in cycles 16, 22 and 23; then the other reader's two beats.
    assert ends == [(0, 16, 23), (1, 24, 25)]
