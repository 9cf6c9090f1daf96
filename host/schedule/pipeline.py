"""The accelerator in the cycle model: sequencer, loaders and array, burst by burst and output by output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from host.schedule.channels import Memory, ReadChannel, WriteChannel
from host.schedule.events import Clock, Process, Signal
from host.schedule.launch import Unit
from host.schedule.outputs import Outputs, Stores, WriteBack
from hw import axi, descriptor, params
from hw.config import Config
from hw.descriptor import Flag
from hw.lane import sum_delay
from hw.layout import ceil_div
from hw.loader import PARAM_GROUPS
from hw.requantise import requantise_delay

DESCRIPTORS, PARAMS, FEATURES, WEIGHTS = range(4)
"""Readers, in the order of the arbiter."""
SIZING = 2
"""Cycles from a burst reader's taking a region, or from a burst's being granted, to its asking for the next burst."""
SETTLING = 2
"""Cycles from the array's taking over a descriptor to the start of its stages."""
PRIMING = 2
"""Cycles from that to the first step."""
QUEUED = 2
"""Cycles of the output queue."""
SABOTEURS = 2
"""Cycles in which the fault instrumentation lets go of its lists, at the end of a launch."""


class Span(NamedTuple):
    """When one job computed: from taking over its descriptor to its last output, and how long its array waited."""

    start: int
    end: int
    waited: int
    """Cycles in which the array had no weights, parameters or features."""


class Burst(NamedTuple):
    """Consecutive words, from the cycles of the first and of the last; those between are evenly spaced."""

    end: int
    """Word after the last."""
    words: int
    first: int
    last: int

    def at(self, word: int) -> int:
        """Cycle of a word (of those between, rounded up)."""
        if self.words == 1:
            return self.last
        return self.last - (self.end - 1 - word) * (self.last - self.first) // (self.words - 1)


@dataclass
class _Job:
    """A descriptor on its way."""

    index: int
    record: dict[str, int]
    flags: int
    rows: list[tuple[int, int]] = field(default_factory=list)
    """Input rows and the cycle from which on they are there, while its features load in chunks."""
    loaded: int | None = None
    """Cycle from which on all its features are there."""
    given: dict[int, int] = field(default_factory=dict)
    """Cycles in which the weight and the parameter loader took it."""

    @property
    def early(self) -> bool:
        """It computes while it loads."""
        return bool(self.flags & Flag.LOAD and self.record["load_chunk"] and not self.flags & Flag.LOAD_ONLY)


class Pipeline:
    """One launch on one compute unit."""

    def __init__(self, config: Config, memory: Memory, unit: Unit) -> None:
        self.config = config
        self.clock = clock = Clock()
        self.reads = ReadChannel(clock, config, memory, 4)
        self.writes = WriteChannel(clock, config, memory)
        self.conv = WriteBack(clock, config, self.writes, 0)
        self.pool = WriteBack(clock, config, self.writes, 1)
        adders = sum_delay(config.vec)
        # From a group's first step to its parameters being taken; from an output's last step to the queue's output.
        self.params_delay = 1 + adders
        pipecnn = config.arithmetic == "pipecnn"
        self.stores = Stores(clock)
        # The step's register, the operands', the sum, the accumulator's, the requantiser, the queue.
        delay = 2 + adders + 1 + requantise_delay(pipecnn=pipecnn) + QUEUED
        self.outputs = Outputs(config, delay, self.conv, self.pool, self.stores)
        names = descriptor.DTYPE.names or ()
        self.reads.urgent[WEIGHTS] = self._urgent
        self.jobs = [
            _Job(index, record := {name: int(row[name]) for name in names}, record["flags"])
            for index, row in enumerate(unit.descriptors)
        ]
        self.spans: list[Span | None] = [None] * len(self.jobs)
        self.end = 0

        self.word_beats = max(1, config.lanes * config.vec // config.port_bytes)
        self.saboteur = config.saboteur
        self.changed = Signal(clock)
        """Something that the sequencer waits for has become known."""
        self.arrived = Signal(clock)
        """When weights, parameters or features arrive has become known."""
        self.released = Signal(clock)
        """When weights or parameters are given up has become known."""
        # What is known so far, in order. Cycles may lie ahead of the clock.
        self.fetched: list[int] = []
        self.taken: list[int] = []
        self.weights_for: list[_Job] = []
        self.params_for: list[_Job] = []
        self.last_regions: dict[int, list[int]] = {WEIGHTS: [], PARAMS: []}
        """Cycles in which the reader accepts the last region of each job that a loader has taken."""
        self.first_group = False
        """The weights asked for are of a job's first group."""
        self.loads: list[tuple[int, _Job]] = []
        self.computes: list[tuple[int, int, _Job]] = []
        self.weight_bursts: list[Burst] = []
        self.given_up: list[Burst] = []
        self.params_there: list[int] = []
        self.params_taken: list[int] = []
        self.loading = self.computing = 0
        """Loads and jobs under way: 0 or 1."""
        self.loaded = self.computed = 0
        """Cycles from which on none is."""

    def run(self) -> None:
        """Predict the launch: fills `spans` and `end`."""
        processes = (
            self._fetch(),
            self._stage(),
            self._take(WEIGHTS, self.weights_for),
            self._take(PARAMS, self.params_for),
            self._weights(),
            self._params(),
            self._features(),
            self._array(),
            self.conv.run(),
            self.pool.run(),
        )
        for process in processes:
            self.clock.resume(0, process)
        self.clock.run()
        assert self.end, "the launch does not end"

    # -- the sequencer

    def _fetch(self) -> Process:
        """Fetch a descriptor when the one before has gone to the loading stage."""
        beats, asks = ceil_div(descriptor.USED_BYTES, self.config.port_bytes), 1 + SIZING
        for index in range(len(self.jobs)):
            yield asks
            yield from self.reads.ask(DESCRIPTORS, beats, self._descriptor_there)
            while len(self.taken) <= index:
                yield self.changed
            asks = self.taken[index] + 1 + SIZING

    def _descriptor_there(self, first: int, last: int) -> None:
        self.fetched.append(last + 1)
        self.changed.fire()

    def _stage(self) -> Process:
        """The loading stage: a descriptor stays until it has loaded, and the job before has computed."""
        free = through = 0
        for index, job in enumerate(self.jobs):
            while len(self.fetched) <= index:
                yield self.changed
            self.taken.append(max(self.fetched[index], free))
            self.changed.fire()
            there = self.taken[index] + 1
            yield there
            if not job.flags & Flag.LOAD_ONLY:
                self.weights_for.append(job)
                self.params_for.append(job)
            self.changed.fire()
            while self.loading:
                yield self.changed
            start = max(there, self.loaded)
            if job.flags & Flag.FENCE:
                while self.computing or self.conv.busy or self.pool.busy:
                    yield self.changed if self.computing else (self.conv if self.conv.busy else self.pool).progress
                start = max(start, self.computed, self.conv.idle, self.pool.idle, self.writes.idle)
            ready = start + 1
            if job.flags & Flag.LOAD:
                yield start
                self.loading = 1
                self.loads.append((start, job))
                self.changed.fire()
                while job.loaded is None and not job.early:
                    yield self.changed
                ready = max(ready, 0 if job.early else job.loaded or 0)
            if job.flags & Flag.LOAD_ONLY:
                through = free = ready + 1
                continue
            while len(job.given) < 2 or self.computing:
                yield self.changed
            ready = max(ready, *(cycle + 1 for cycle in job.given.values()))
            self.computing = 1
            self.computes.append((max(ready, self.computed), ready, job))
            self.changed.fire()
            free = max(ready, self.computed) + 1
        while self.computing or self.conv.busy or self.pool.busy:
            yield self.changed if self.computing else (self.conv if self.conv.busy else self.pool).progress
        self.end = (
            max(through, self.computed, self.conv.idle, self.pool.idle, self.writes.idle) + SABOTEURS * self.saboteur
        )

    # -- the loaders

    def _bursts(self, addr: int, beats: int, longest: int) -> Iterator[int]:
        """Beats of the bursts that a region is cut into."""
        boundary = min(longest, axi.BOUNDARY // self.config.port_bytes)
        at = addr // self.config.port_bytes
        while beats:
            burst = min(beats, boundary - at % boundary)
            yield burst
            at, beats = at + burst, beats - burst

    def _take(self, loader: int, jobs: list[_Job]) -> Process:
        """A loader takes a job when the reader has accepted the last region of the one before."""
        accepted = self.last_regions[loader]
        for index in range(sum(not job.flags & Flag.LOAD_ONLY for job in self.jobs)):
            while len(jobs) <= index or len(accepted) < index:
                yield self.changed
            if index:
                yield max(self.clock.now, accepted[index - 1] + 1)
            jobs[index].given[loader] = self.clock.now
            self.changed.fire()

    def _urgent(self) -> bool:
        """Whether weights go before features: the array cannot begin without a job's first group.

        Not when the computing job's features still load and the weight loader has taken a job after it, even if it
        still asks for the computing job's.
        """
        if not self.computes or not self.first_group:
            return self.first_group
        own, now = self.computes[-1][2], self.clock.now
        if not own.early or (own.loaded is not None and own.loaded < now):
            return True
        taken = (job.given.get(WEIGHTS) for job in self.weights_for if job.index > own.index)
        return not any(cycle is not None and cycle < now for cycle in taken)

    def _weights(self) -> Process:
        config, beats = self.config, self.word_beats
        longest = min(axi.MAX_BEATS, config.weight_words * beats // 4)
        asked, idle, look = 0, 0, 0
        for index in range(sum(not job.flags & Flag.LOAD_ONLY for job in self.jobs)):
            while len(self.weights_for) <= index or WEIGHTS not in self.weights_for[index].given:
                yield self.changed
            job, record = self.weights_for[index], self.weights_for[index].record
            size = record["steps"] * config.lanes * config.vec
            regions = record["groups_out"] * record["weight_passes"]
            for number in range(regions):
                accepted = max(job.given[WEIGHTS] + 1, idle)
                if number == regions - 1:
                    self.last_regions[WEIGHTS].append(accepted)
                    self.changed.fire()
                addr = record["weight_addr"] + number // record["weight_passes"] * size
                asks = accepted + SIZING
                for burst in self._bursts(addr, record["steps"] * beats, longest):
                    keep = ceil_div(asked + burst, beats) - config.weight_words
                    if keep > 0:
                        while not self.given_up or self.given_up[-1].end < keep:
                            yield self.released
                        while self.given_up[look].end < keep:
                            look += 1
                        asks = max(asks, self.given_up[look].at(keep - 1))
                    yield asks
                    self.first_group = number == 0
                    yield from self.reads.ask(WEIGHTS, burst, partial(self._weights_there, asked, burst))
                    asked += burst
                    asks = self.reads.granted + SIZING
                    idle = self.reads.granted + 1

    def _weights_there(self, begin: int, burst: int, first: int, last: int) -> None:
        """Beats from `begin` on (of the launch) have been granted."""
        beats = self.word_beats
        end = (begin + burst) // beats
        words = end - begin // beats
        if words:
            # The first word may have begun in the burst before.
            spread = (last - first) * (words - 1) * beats // max(1, burst - 1)
            self.weight_bursts.append(Burst(end, words, last + 1 - spread, last + 1))
            self.arrived.fire()

    def _params(self) -> Process:
        config = self.config
        size = config.lanes * params.PARAM_BYTES
        beats = size // config.port_bytes
        idle = groups = 0
        for index in range(sum(not job.flags & Flag.LOAD_ONLY for job in self.jobs)):
            while len(self.params_for) <= index or PARAMS not in self.params_for[index].given:
                yield self.changed
            job, record = self.params_for[index], self.params_for[index].record
            for group in range(record["groups_out"]):
                accepted = max(job.given[PARAMS] + 1, idle)
                if groups >= PARAM_GROUPS:
                    while len(self.params_taken) <= groups - PARAM_GROUPS:
                        yield self.released
                    accepted = max(accepted, self.params_taken[groups - PARAM_GROUPS])
                if group == record["groups_out"] - 1:
                    self.last_regions[PARAMS].append(accepted)
                    self.changed.fire()
                asks = accepted + SIZING
                left = beats
                for burst in self._bursts(record["param_addr"] + group * size, beats, min(beats, axi.MAX_BEATS)):
                    yield asks
                    left -= burst
                    yield from self.reads.ask(PARAMS, burst, partial(self._params_come, left))
                    asks = self.reads.granted + SIZING
                idle = self.reads.granted + 1
                groups += 1

    def _params_come(self, left: int, first: int, last: int) -> None:
        if left == 0:
            self.params_there.append(last + 1)
            self.arrived.fire()

    def _features(self) -> Process:
        config = self.config
        slots, idle = config.port_bytes // config.vec, 0
        for index in range(sum(bool(job.flags & Flag.LOAD) for job in self.jobs)):
            while len(self.loads) <= index:
                yield self.changed
            start, job = self.loads[index]
            held = partial(self.stores.between, int(bool(job.flags & Flag.SRC_B)))
            record = job.record
            total = record["load_words"]
            chunk = record["load_chunk"] or total
            accepted = max(start + 1, idle)
            for number, word in enumerate(range(0, total, chunk)):
                words = min(chunk, total - word)
                for segment in range(record["load_segments"]):
                    addr = record["load_addr"] + segment * record["load_stride"] + word * config.vec
                    slot = addr % config.port_bytes // config.vec
                    beats, at, asks = ceil_div(slot + words, slots), 0, accepted + SIZING
                    for burst in self._bursts(addr, beats, axi.MAX_BEATS):
                        yield asks
                        # Words of the first beat, of those between, and of the last.
                        counts = (
                            min(slot + words, (at + 1) * slots) - max(slot, at * slots),
                            slots,
                            min(slot + words, (at + burst) * slots) - max(slot, (at + burst - 1) * slots),
                        )
                        at += burst
                        ends = at == beats and segment == record["load_segments"] - 1
                        rows = (number + 1) * record["load_rows"] if ends else None
                        answer = partial(self._features_there, job, rows, ends and word + words == total)
                        yield from self.reads.ask(FEATURES, burst, answer, counts, held)
                        asks = self.reads.granted + SIZING
                    accepted = idle = self.reads.granted + 1
            while job.loaded is None:
                yield self.changed

    def _features_there(self, job: _Job, rows: int | None, ended: bool, first: int, last: int) -> None:
        """A burst has come: the last of a chunk (of rows), or of all."""
        if rows:
            job.rows.append((rows, last + 1))
        if ended:
            job.loaded = self.loaded = last + 1
            self.loading = 0
            self.changed.fire()
        self.arrived.fire()

    # -- the array

    def _give_up(self, end: int, words: int, first: int, last: int, issued: int) -> None:
        """Words up to `end` are used for the last time, from cycle `first` to `last`; the last of them when issued."""
        if issued > last and words > 1:
            self.given_up.append(Burst(end - 1, words - 1, first + 1, last))
            words = 1
        self.given_up.append(Burst(end, words, first + 1 if words > 1 else issued + 1, issued + 1))
        self.released.fire()

    def _array(self) -> Process:
        word = group = 0  # weight words and output groups so far
        used = 0  # bursts of weights used
        outputs = self.outputs
        for index in range(sum(not job.flags & Flag.LOAD_ONLY for job in self.jobs)):
            while len(self.computes) <= index:
                yield self.changed
            began, ready, job = self.computes[index]
            record, flags = job.record, job.flags
            waited = max(0, ready - self.computed) if index else 0
            # Jobs of one output: the stages behind the array go on from one to the next, and no output leaves a part.
            leaves, waits = not flags & Flag.PARTIAL, not flags & (Flag.PARTIAL | Flag.MORE)
            if not flags & (Flag.PARTIAL | Flag.RESUME):
                outputs.begin(record, began + SETTLING)
            step = began + SETTLING + PRIMING  # the next one's cycle, if nothing is missing
            steps, width = record["steps"], record["out_w"]
            count = 1 if flags & Flag.ONE else record["images"] * record["out_h"] * width
            streaming = bool(flags & Flag.STREAM)
            for number in range(record["groups_out"]):
                while len(self.params_there) <= group:
                    yield self.arrived
                earliest = max(step, self.params_there[group])
                at = 0
                while at < count:
                    if number == 0 and job.early and at % width == 0:
                        row = at // width * record["stride_y"] - record["pad_y"] + record["kernel_h"]
                        while job.loaded is None and (not job.rows or job.rows[-1][0] < row):
                            yield self.arrived
                        there = next((cycle for rows, cycle in job.rows if rows >= row), None)
                        earliest = max(earliest, there if there is not None else job.loaded or 0)
                    final = streaming or at == count - 1
                    if at == 0 or streaming:
                        # Words as they arrive.
                        left, issue = steps, earliest
                        while left:
                            while used == len(self.weight_bursts):
                                yield self.arrived
                            burst = self.weight_bursts[used]
                            here = min(left, burst.end - word)
                            first = max(issue, burst.at(word))
                            if at == 0 and left == steps:
                                self.params_taken.append(first + self.params_delay + 1)
                                self.released.fire()
                            last = max(first + here - 1, burst.at(word + here - 1))
                            word, left, issue = word + here, left - here, last + 1
                            issued = outputs.issue(last) if left == 0 else last
                            if final:
                                self._give_up(word, here, first, last, issued)
                            last = issued
                            used += word == burst.end
                        waited += last + 1 - step - steps
                        if leaves:
                            yield from outputs.take(last)
                        at += 1
                    else:
                        waited += earliest - step
                        last = earliest + steps - 1
                        room = count - 1 - at
                        if number == 0 and job.early:
                            room = min(room, width - at % width)
                        fast = outputs.run(last, steps, room) if room > 0 else None
                        if fast is not None:
                            at, last = at + fast[0], fast[1]
                        else:
                            issued = outputs.issue(last)
                            if final:
                                self._give_up(word, steps, earliest, last, issued)
                            last = issued
                            yield from outputs.take(last)
                            at += 1
                    step = earliest = last + 1
                group += 1
            while job.early and job.loaded is None:
                yield self.arrived
            end = max(began + SETTLING + 2, outputs.done if waits else 0, step, job.loaded or 0 if job.early else 0)
            self.spans[job.index] = Span(began, end, waited)
            self.computed, self.computing = end + 1, 0
            self.changed.fire()
