"""The cycle model: predicts, without simulating, how long a launch takes on a memory of given latency and bandwidth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from host.schedule.launch import Launch, Unit
from hw import axi, descriptor, params
from hw.config import Config
from hw.descriptor import Flag
from hw.lane import sum_delay
from hw.layout import ceil_div
from hw.requantise import requantise_delay
from hw.writeback import CHUNK

START = 9
"""Cycles from a job's features being there to its first step: hand-over, settling, priming."""
HAND_OVER = 4
"""Cycles from a job's last result to the next job's hand-over."""
REQUEST = 5
"""Cycles of the arbiter, the burst cutter and the memory port around each first beat."""
BURST = 9
"""Cycles of the write-back between bursts."""


@dataclass(frozen=True)
class Memory:
    """Of the accelerator's memory: cycles from a request to its first beat, and bytes a cycle of each channel."""

    latency: int = 32
    bytes_per_cycle: float | None = None

    def beat(self, config: Config) -> float:
        """Cycles of a full beat."""
        rate = config.port_bytes if self.bytes_per_cycle is None else min(self.bytes_per_cycle, config.port_bytes)
        return config.port_bytes / rate


@dataclass(frozen=True)
class JobCycles:
    """One job: when it starts and ends after the launch's start, and what it would take at best."""

    layer: int
    start: float
    end: float
    ideal: int
    """One step a cycle: `images * out_h * out_w * output groups * steps`."""
    bound: str
    """"compute", or "memory" where the array waits for weights or features longer than a tenth of its time."""


@dataclass(frozen=True)
class Estimate:
    """A launch on one compute unit."""

    cycles: float
    jobs: tuple[JobCycles, ...]

    def layer(self, at: int) -> tuple[float, int, str]:
        """Cycles, ideal cycles and bound of a layer: its jobs' time, each from the end of the job before it."""
        spent, ideal, memory = 0.0, 0, 0.0
        before = 0.0
        for job in self.jobs:
            if job.layer == at:
                spent += job.end - before
                ideal += job.ideal
                memory += (job.end - before) * (job.bound == "memory")
            before = job.end
        return spent, ideal, "memory" if memory > spent / 2 else "compute"


def estimate(launch: Launch, memory: Memory = Memory(), unit: int = 0) -> Estimate:
    """Cycles of one compute unit of a launch, fault-free.

    Within 2 % of the RTL on LeNet-5; launches of a few hundred cycles may be off by a tenth. The read channel is shared
    in the order of asking, and how write-back competes for the write channel is approximated.
    """
    return _Model(launch.program.config, memory).run(launch.units[unit])


class _Model:
    """Walks jobs as the sequencer does: one is fetched, one loads, one computes."""

    def __init__(self, config: Config, memory: Memory) -> None:
        self.config = config
        self.latency = memory.latency + REQUEST
        self.beat = memory.beat(config)
        self.word_beats = ceil_div(config.lanes * config.vec, config.port_bytes)
        self.word_bytes = config.lanes * config.vec
        self.burst_words = max(1, min(axi.MAX_BEATS // self.word_beats, config.weight_words // 4))
        # The array's delay (an array made only to be asked would be reported as unused), then the output queue.
        self.drain = 2 + sum_delay(config.vec) + requantise_delay(pipecnn=config.arithmetic == "pipecnn") + 4

    def run(self, unit: Unit) -> Estimate:
        config = self.config
        fetch = self.latency + ceil_div(descriptor.USED_BYTES, config.port_bytes) * self.beat
        param_beats = max(1, config.lanes * params.PARAM_BYTES // config.port_bytes)
        channel = 0.0  # when the read channel has delivered all weights asked for so far
        fetched, advanced, ended, written = fetch, 0.0, 0.0, 0.0
        free = 0.0  # when the loading stage is
        released: list[tuple[int, float]] = []  # (weight words given up, when)
        words = 0
        jobs: list[JobCycles] = []
        for record, job in zip(unit.descriptors, unit.jobs, strict=True):
            flags = int(record["flags"])
            groups, steps = int(record["groups_out"]), int(record["steps"])
            outputs = int(record["images"]) * int(record["out_h"]) * int(record["out_w"])
            outputs = 1 if flags & Flag.ONE else outputs
            taken = max(fetched, free) + 1
            fetched = taken + fetch
            loaded = taken + 1
            if flags & Flag.LOAD:
                begin = max(taken, ended + HAND_OVER, written) if flags & Flag.FENCE else taken
                count = int(record["load_words"]) * int(record["load_segments"])
                moved = count * config.vec / config.port_bytes * self.beat
                loaded = begin + self.latency + max(count, moved)
                channel = max(channel, begin + self.latency) + moved
            if flags & Flag.LOAD_ONLY:
                free = loaded
                continue
            free = advanced = max(loaded, ended + HAND_OVER if jobs else 0.0)
            first = now = advanced + START
            arrive = max(channel + ceil_div(descriptor.USED_BYTES, config.port_bytes) * self.beat, taken + self.latency)
            waited = max(0.0, loaded - ended) if jobs else 0.0
            for group in range(groups):
                arrive += (param_beats + steps * self.word_beats) * self.beat
                if flags & Flag.STREAM:
                    # Words come and go: the array or the memory sets the pace, from the first output to the last.
                    words += steps * outputs
                    arrive = max(arrive, now) + (outputs - 1) * max(steps, steps * self.word_beats * self.beat)
                    waited += max(0.0, arrive - now - outputs * steps)
                    now = max(now + outputs * steps, arrive)
                    released.append((words, now))
                    continue
                # A burst is asked for once the ring has room for it; what follows comes behind it.
                for asked, burst in self._bursts(int(record["weight_addr"]) + group * steps * self.word_bytes, steps):
                    room = self._room(released, words + asked + burst)
                    arrive = max(arrive, room + self.latency + (steps - asked) * self.word_beats * self.beat)
                words += steps
                last = max(now + steps, arrive)
                waited += last - now - steps
                now = last + (outputs - 1) * steps
                released.append((words, now))
            del released[:-64]
            channel = arrive
            if flags & (Flag.PARTIAL | Flag.MORE):
                ended = now
            else:
                ended = max(now + self.drain, first + self._outputs(record)) + (3 if flags & Flag.POOL else 0)
            if flags & (Flag.WRITE_CONV | Flag.WRITE_POOL):
                written = ended + self.latency
            bound = "memory" if waited > 0.1 * (ended - advanced) else "compute"
            jobs.append(JobCycles(job.layer, advanced, ended, groups * outputs * steps, bound))
        return Estimate(max(ended, written) + HAND_OVER, tuple(jobs))

    def _bursts(self, address: int, words: int) -> Iterator[tuple[int, int]]:
        """First word and words of the bursts that fetch a group's weights; in sixteen pieces if there are many."""
        longest = max(self.burst_words, words // 16)
        at = 0
        while at < words:
            to_boundary = (axi.BOUNDARY - (address + at * self.word_bytes) % axi.BOUNDARY) // self.word_bytes
            burst = min(longest, words - at, to_boundary if longest == self.burst_words else words)
            yield at, burst
            at += burst

    def _room(self, released: list[tuple[int, float]], words: int) -> float:
        """When the ring has room for that many words since the launch's start."""
        needed = words - self.config.weight_words
        # A group's words are given up one a cycle during its last output.
        return next((when - (count - needed) for count, when in released if count >= needed > 0), 0.0)

    def _outputs(self, record: np.void) -> float:
        """Cycles that pooling, storing and writing back need for a job's outputs."""
        config = self.config
        planes = int(record["groups_out"]) * int(record["images"])
        flags = int(record["flags"])
        if flags & Flag.RESUME:
            return self.drain
        conv = planes * int(record["out_h"]) * int(record["out_w"])
        final = planes * int(record["pool_h"]) * int(record["pool_w"])
        walk = conv
        if flags & Flag.POOL:
            pad = int(record["pool_pad"])
            walk = planes * (int(record["out_h"]) + pad) * (int(record["out_w"]) + pad)
        times = [float(walk), float(final * max(1, config.lanes // config.vec))]
        # Groups beyond `dst_groups` are dropped; with fewer lanes than a word has channels, each writes a part of it.
        written = int(record["images"]) * int(record["dst_groups" if config.lanes >= config.vec else "groups_out"])
        for flag, pixels in ((Flag.WRITE_CONV, conv // planes), (Flag.WRITE_POOL, final // planes)):
            if flags & flag:
                moved = pixels * config.vec / config.port_bytes * self.beat
                times.append(written * max(moved, pixels + ceil_div(pixels, CHUNK) * BURST))
        return max(times) + self.drain
