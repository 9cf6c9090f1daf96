"""Behind the array in the cycle model: the output queue, the pool, the store and the write-back."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import NamedTuple

from host.schedule.channels import WriteChannel
from host.schedule.events import Clock, Process, Signal
from hw import axi
from hw.accelerator import OUTPUT_QUEUE
from hw.config import Config
from hw.descriptor import Flag
from hw.layout import ceil_div
from hw.writeback import CHUNK


class Chunk(NamedTuple):
    """Outputs gathered, to be written."""

    full: int
    """Cycle from which on it waits."""
    addr: int
    words: int
    parts: int
    plane: int


class WriteBack:
    """One of the two write-back units."""

    def __init__(self, clock: Clock, config: Config, channel: WriteChannel, index: int) -> None:
        self._clock, self._config, self._channel, self._index = clock, config, channel, index
        self._posted: deque[Chunk] = deque()
        self._arrived = Signal(clock)
        self.freed: list[int] = []
        """Cycles from which on the half of each chunk takes outputs again."""
        self.progress = Signal(clock)
        self.posted = 0
        self.idle = 0
        """Cycle from which on it has nothing to do, if `freed` is as long as `posted`."""

    @property
    def busy(self) -> bool:
        """Chunks are waiting to be written."""
        return self.posted > len(self.freed)

    def post(self, chunk: Chunk) -> None:
        """Outputs are ready to be written."""
        self._posted.append(chunk)
        self.posted += 1
        self._arrived.fire()

    def run(self) -> Process:
        """The unit's state machine."""
        config, vec = self._config, self._config.vec
        while True:
            while not self._posted:
                yield self._arrived
            chunk = self._posted.popleft()
            asks = max(self._clock.now, chunk.full, self.idle) + 2
            for part in range(chunk.parts):
                addr, left = chunk.addr + part * chunk.plane, chunk.words
                while left:
                    run = min(left, (axi.BOUNDARY - addr % axi.BOUNDARY) // vec)
                    yield asks
                    yield from self._channel.ask(self._index, addr % config.port_bytes // vec, run)
                    last = self._channel.last(self._index)
                    # After the last word, a cycle to go on, and one to size the next burst.
                    asks = last + 3
                    addr, left = addr + run * vec, left - run
            self.idle = last + 2
            self.freed.append(self.idle)
            self.progress.fire()


class Gathering:
    """A write-back unit's input: outputs become chunks, and wait while both halves are full."""

    def __init__(self, unit: WriteBack) -> None:
        self._unit = unit
        self.enabled = False

    def begin(
        self, config: Config, enabled: bool, base: int, plane: int, image: int, geometry: tuple[int, int, int]
    ) -> None:
        """A job: outputs of a plane, images, and channel groups that are written."""
        self.enabled = enabled
        self._base, self._plane, self._image = base, plane, image
        self.pixels, self._images, self._groups = geometry
        self._config = config
        self._at = self._pixel = self._picture = self._group = 0

    @property
    def left(self) -> int:
        """Outputs until the chunk that is being gathered is complete."""
        return min(CHUNK - self._at, self.pixels - self._pixel)

    @property
    def blocked(self) -> bool:
        """The next output waits for a chunk that is not written yet."""
        return self.enabled and self._unit.posted - 2 >= len(self._unit.freed)

    @property
    def progress(self) -> Signal:
        return self._unit.progress

    @property
    def opened(self) -> int:
        """Cycle from which on the next output is taken."""
        posted = self._unit.posted
        return self._unit.freed[posted - 2] if self.enabled and posted >= 2 else 0

    def take(self, count: int, last: int) -> None:
        """Outputs up to the end of the chunk at most; the last is taken in that cycle."""
        if not self.enabled:
            return
        self._at += count
        self._pixel += count
        if self._at < CHUNK and self._pixel < self.pixels:
            return
        lanes, vec = self._config.lanes, self._config.vec
        parts, subs = max(1, lanes // vec), max(1, vec // lanes)
        group = self._group // subs * parts
        if group < self._groups:
            first = self._base + self._picture * self._image + group * self._plane + (self._pixel - self._at) * vec
            self._unit.post(Chunk(last + 1, first, self._at, min(parts, self._groups - group), self._plane))
        self._at = 0
        if self._pixel == self.pixels:
            self._pixel = 0
            self._picture += 1
            if self._picture == self._images:
                self._picture = 0
                self._group += 1


class Stores:
    """When results are stored in the feature buffers: words from memory wait in those cycles."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # (buffer, first cycle, cycles from one to the next, how many, cycles that each takes)
        self._runs: deque[tuple[int, int, int, int, int]] = deque()

    def add(self, buffer: int, first: int, apart: int, count: int, parts: int) -> None:
        """Results stored at even distances."""
        runs = self._runs
        while runs and runs[0][1] + runs[0][2] * runs[0][3] < self._clock.now:
            runs.popleft()
        runs.append((buffer, first, apart, count, parts))

    def between(self, buffer: int, begin: int, end: int) -> int:
        """Cycles from `begin` to `end` in which a buffer stores."""
        found = 0
        for where, first, apart, count, parts in self._runs:
            if where == buffer and first <= end and first + apart * count >= begin:
                after = min(count, (end - first) // apart + 1)
                before = min(count, max(0, ceil_div(begin - first, apart)))
                found += max(0, after - before) * parts
        return found


class Outputs:
    """The stages behind the array, an output at a time; in runs where nothing holds them up.

    Attributes
    ----------
    last : int
        Cycle in which the output taken last left the queue.
    done : int
        Cycle in which the pool is done, after the job's last output.
    """

    def __init__(self, config: Config, delay: int, conv: WriteBack, pool: WriteBack, stores: Stores) -> None:
        self._config = config
        self._stores = stores
        self._delay = delay
        self._parts = max(1, config.lanes // config.vec)
        self.conv, self.pool = Gathering(conv), Gathering(pool)
        self._popped: deque[int] = deque([-1] * OUTPUT_QUEUE, OUTPUT_QUEUE)
        self.done = 0

    def begin(self, record: dict[str, int], start: int) -> None:
        """A job that starts in that cycle."""
        r, config, flags = record, self._config, record["flags"]
        self._pooling = bool(flags & Flag.POOL)
        self._buffer = int(bool(flags & Flag.DST_B)) if flags & Flag.STORE else None
        self._number, self._of_group, self._groups = 0, r["images"] * r["out_h"] * r["out_w"], r["dst_groups"]
        for unit, flag, name, pixels in (
            (self.conv, Flag.WRITE_CONV, "conv", r["out_h"] * r["out_w"]),
            (self.pool, Flag.WRITE_POOL, "pool", r["pool_h"] * r["pool_w"]),
        ):
            where = r[f"{name}_addr"], r[f"{name}_plane"], r[f"{name}_image"]
            unit.begin(config, bool(flags & flag), *where, (pixels, r["images"], r["dst_groups"]))
        self._width, self._height = r["out_w"], r["out_h"]
        self._at = 0  # output of the plane
        self._kernel, self._stride, self._pad = r["pool_kernel"], r["pool_stride"], r["pool_pad"]
        self._windows = r["pool_w"], r["pool_h"]
        self._ready = start + 1  # cycle in which the pool looks at its next position
        self._free = start + 1  # cycle in which the pool's output register is free again
        self._across = 0  # cycle in which the pool has passed on the latest row of a window
        if self._pooling:
            across = max(self._width + self._pad - 1, (r["pool_w"] - 1) * self._stride + self._kernel - 1)
            down = max(self._height + self._pad - 1, (r["pool_h"] - 1) * self._stride + self._kernel - 1)
            self._ends = across, down
            self._x = self._y = 0
        self._pending: deque[tuple[int, int]] = deque()  # pooled outputs: when shown, when gone

    def issue(self, earliest: int) -> int:
        """First cycle from `earliest` on in which the last step of the next output may be issued."""
        return max(earliest, self._popped[0] + 1)

    def run(self, earliest: int, steps: int, count: int) -> tuple[int, int] | None:
        """The fast way: outputs whose last steps are issued every `steps` cycles from `earliest` on, none held up.

        How many of `count` that was, and the cycle of the last one's last step; None: go one by one.
        """
        if steps < max(4, self._parts + 2) or self.conv.blocked or self.pool.blocked:
            return None
        first = earliest + self._delay
        if self._popped[0] >= earliest or max(self._popped[-1], self._ready, self._free) > first:
            return None
        if self.conv.enabled:
            if self.conv.opened > first:
                return None
            count = min(count, self.conv.left)
        if self._pooling:
            count = min(count, self._width - self._at % self._width)
            # Positions outside the plane, and pooled outputs that are written, go one by one.
            if self.pool.enabled or self._at % self._width == 0 or count < 2:
                return None
            if self._at % self._width + count == self._width:
                count -= 1
        elif self.pool.enabled:
            if self.pool.opened > first:
                return None
            count = min(count, self.pool.left)
        if not self._pooling:
            self._store(first, steps, count)
        elif self._y >= self._kernel - 1 and (self._y - self._kernel + 1) % self._stride == 0:
            self._store(first + 2, steps * self._stride, count // self._stride)
        self._number += count
        issued = earliest + (count - 1) * steps
        left = issued + self._delay + (0 if self._pooling else self._parts - 1)
        self._popped.extend(
            left - (min(OUTPUT_QUEUE, count) - 1 - at) * steps for at in range(min(OUTPUT_QUEUE, count))
        )
        self._at += count
        if self._pooling:
            self._x += count
            self._ready = left + 1
        else:
            self._ready = self.done = left + 1
            self.pool.take(count, left)
        self.conv.take(count, left)
        if self._at == self._width * self._height:
            self._at = 0
        return count, issued

    def take(self, issued: int) -> Generator[Signal, None, None]:
        """One output, whose last step is issued in that cycle; waits for the write-back if it must."""
        while self.conv.blocked:
            yield self.conv.progress
        visible = max(issued + self._delay, self._popped[-1] + 1, self.conv.opened)
        self._number += 1
        if self._pooling:
            yield from self._lead()
            left = max(visible, self._ready)
            yield from self._walk(left)
            self._popped.append(left)
            self.conv.take(1, left)
            self._at += 1
            if self._at == self._width * self._height:
                self._at = 0
                yield from self._finish()
                self.done = max(self._ready, self._free, self._across)
            return
        while self.pool.blocked:
            yield self.pool.progress
        left = max(visible, self._ready, self.pool.opened) + self._parts - 1
        self._store(left - self._parts + 1, 1, 1)
        self._popped.append(left)
        self._ready = self.done = left + 1
        self.conv.take(1, left)
        self.pool.take(1, left)

    def _store(self, first: int, apart: int, count: int) -> None:
        """Final outputs are stored, beginning in that cycle; words beyond the channels to be kept are not."""
        if self._buffer is None or count == 0:
            return
        group = max(0, self._number - 1) // self._of_group
        kept = self._parts if self._config.lanes < self._config.vec else self._groups - group * self._parts
        if kept > 0:
            self._stores.add(self._buffer, first, apart, count, min(self._parts, kept))

    # -- the pool's walk over the padded plane

    def _real(self) -> bool:
        pad = self._pad
        return pad <= self._x < pad + self._width and pad <= self._y < pad + self._height

    def _lead(self) -> Generator[Signal, None, None]:
        """Walk to the next position that takes an output."""
        while not self._real():
            yield from self._walk(self._ready)

    def _finish(self) -> Generator[Signal, None, None]:
        """After the plane's last output: walk to the plane's end."""
        while self._x or self._y:
            yield from self._walk(self._ready)

    def _walk(self, cycle: int) -> Generator[Signal, None, None]:
        """Leave a position in that cycle: a window that it finishes comes out two cycles later."""
        across, down = self._x - self._kernel + 1, self._y - self._kernel + 1
        stride = self._stride
        self._ready = cycle + 1
        ends_row = across >= 0 and across % stride == 0 and across // stride < self._windows[0]
        if ends_row:
            self._across = cycle + 2
        if ends_row and down >= 0 and down % stride == 0 and down // stride < self._windows[1]:
            while self.pool.blocked:
                yield self.pool.progress
            # The register holds it until the store has taken all its parts; the walk waits meanwhile.
            shown = max(cycle + 2, self._free)
            gone = max(shown, self.pool.opened) + self._parts - 1
            self._store(gone - self._parts + 1, 1, 1)
            self.pool.take(1, gone)
            self._free = gone + 1
            self._pending.append((shown, gone))
        # The walk stands still while an output is shown and not taken.
        while self._pending and self._ready >= self._pending[0][0]:
            self._ready = max(self._ready, self._pending.popleft()[1])
        self._x += 1
        if self._x > self._ends[0]:
            self._x, self._y = 0, self._y + 1
            if self._y > self._ends[1]:
                self._y = 0


__all__ = ["Outputs", "Stores", "WriteBack"]
