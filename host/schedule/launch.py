"""Scheduling: consecutive layers and a batch become descriptor lists, an on-chip allocation and a memory map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.compiler.limits import CPU_REMEDY, CompileError, check_accelerator, is_fully_connected
from host.devices.device import DeviceError
from host.faults.plan import FaultPlan
from host.program.arrangement import arrange, steps
from host.program.layers import Layer
from host.program.program import Program
from host.schedule.memory import (
    MemoryMap,
    Region,
    conv_is_separate,
    conv_name,
    input_name,
    out_name,
    params_name,
    tensor_shape,
    weights_map,
    weights_name,
)
from host.schedule.reading import Part, Piece, Reading, chunk_reading, reading, window_pieces
from host.schedule.tiling import (
    Band,
    Taps,
    Tile,
    Tiling,
    column_axis,
    fits_on_chip,
    layer_words,
    row_axis,
    tiling,
    whole,
)
from hw import descriptor, events, masks
from hw.config import Config
from hw.descriptor import Flag
from hw.layout import ceil_div

Records = npt.NDArray[np.void]

LOAD_FIELDS = tuple(name for name in descriptor.DTYPE.names or () if name.startswith("load_"))
"""Fields of the descriptor that say what to load."""
CHUNK_BEATS = 32
"""Beats of memory that a chunk of a load takes at least: shorter bursts would waste bandwidth on their ends."""


class MemoryTooSmall(DeviceError):
    """Device memory cannot hold the launch; a smaller batch may fit."""


class Output(NamedTuple):
    """What a job computes that has one output, or a part of it."""

    y: int
    x: int
    """Row and column of the convolution's output in the image."""
    taps: Taps
    """Steps of it that the job takes."""


class Job(NamedTuple):
    """What one descriptor computes, or loads for the next that computes."""

    layer: int
    """Position in `Program.layers`."""
    first: int
    """Position in the launch of its first image."""
    images: int
    tile: Tile
    """What of each image: all of it, unless the layer is tiled."""
    first_group: int
    """The first output group of LANES channels."""
    groups: int
    """Output groups: all of the tile's, unless they read from irregular places. 0: the descriptor only loads."""
    output: Output | None = None
    """For a job that computes one output of its tile, or a part of it: which."""


@dataclass(frozen=True)
class Unit:
    """The work of one compute unit: lists of records and the addresses they must be placed at before the start.

    Attributes
    ----------
    descriptors : array of `hw.descriptor.DTYPE`
    descriptors_address : int
        Aligned to 256.
    jobs : tuple of Job
        What each descriptor computes.
    mac_events, feature_events : arrays of `hw.events.DTYPE`
        Sorted by (job, slot, lane, bit); empty without faults.
    mac_events_address, feature_events_address : int
        Aligned to 64.
    """

    descriptors: Records
    descriptors_address: int
    jobs: tuple[Job, ...]
    mac_events: Records
    mac_events_address: int
    feature_events: Records
    feature_events_address: int
    late_masks: Records = field(default_factory=lambda: np.zeros(0, masks.DTYPE))
    """Of the plan's conditions, records of `hw.masks.DTYPE`; the same for all units."""
    late_masks_address: int = 0
    """Aligned to 64."""


@dataclass(frozen=True)
class Launch:
    """One call of the accelerator: a batch through layers that follow each other in execution order.

    A device places each unit's lists at their addresses, runs all units to completion, and reports. Everything else in
    `memory` (weights, parameters, input) has been written before.

    Attributes
    ----------
    program : Program
    positions : tuple of int
        The layers, as positions in `program.layers`, in execution order.
    inputs : dict of int
        Tensors that the launch reads and does not compute (layers' names, or `INPUT`), with their channels.
    batch : int
    writeback : bool
        Whether every layer's outputs are written to memory, or only what later jobs and the host need.
    units : list of Unit
        One a compute unit that has work; never more than the device has.
    memory : dict of Region
        `weights/NAME`, `params/NAME`, `in/NAME`, `conv/NAME`, `out/NAME`, `descriptors/UNIT`.
    written : tuple of str
        Regions that the launch writes.
    end : int
        First free byte after all regions and lists.
    max_cycles : int
        A generous bound: a device that takes longer hangs.
    plan : FaultPlan or None
        Faults, for devices that interpret layers instead of executing descriptors; already encoded in the units'
        events. Includes flips of weights and input, which the host has applied to memory: such a device must not
        apply them again.
    first_image : int
        Index in the plan of the launch's image 0.
    """

    program: Program
    positions: tuple[int, ...]
    inputs: dict[str, int]
    batch: int
    writeback: bool
    units: list[Unit]
    memory: dict[str, Region]
    written: tuple[str, ...]
    end: int
    memory_bytes: int
    max_cycles: int
    plan: FaultPlan | None = None
    first_image: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in execution order."""
        return tuple(self.program.layers[at].name for at in self.positions)

    @property
    def result(self) -> str:
        """Region of the last layer's output."""
        return out_name(self.layers[-1])

    @property
    def faults(self) -> int:
        """Fault events in all units' lists."""
        return sum(len(unit.mac_events) + len(unit.feature_events) for unit in self.units)

    def tiles(self, position: int) -> tuple[tuple[Band, Band], ...]:
        """Rows and columns of the tiles that a layer is computed in, in the order of computing; one that is all of an
        image for a layer that is not tiled.

        What is shared by two tiles is computed in both, and of final positions, the tile where they are complete
        (`Band.kept_first` and after) is the last to write them. Every tile starts each of its rows anew: the history of
        the overclocking model is that of no step there, as at the beginning of a row of the image.
        """
        found = {(j.tile.rows, j.tile.columns): None for unit in self.units for j in unit.jobs if j.layer == position}
        return tuple(found)

    def restarts(self, position: int) -> tuple[int, ...]:
        """Steps of an output before which a layer's jobs start anew, so that no history is left: () unless each output
        is computed by jobs of its own (it begins with 0, then)."""
        jobs = [job for unit in self.units for job in unit.jobs if job.layer == position]
        return tuple(sorted({job.output.taps.first_step for job in jobs if job.output is not None}))

    def with_program(self, program: Program) -> Launch:
        """The same launch for a Program that differs in weights only."""
        return replace(self, program=program)

    def with_faults(self, plan: FaultPlan, first_image: int, *, events_too: bool = True) -> Launch:
        """The same launch with a plan's accumulator and feature faults and its conditions, as lists behind all else.

        Without `events_too` only as a plan, for devices that read no event lists.

        Raises
        ------
        PlanError
            If the plan does not fit the program.
        MemoryTooSmall
            If the event lists do not fit device memory.
        """
        from host.faults.saboteur import encode  # it imports Launch

        here = plan.images(first_image, self.batch)
        if not events_too:
            return replace(self, plan=here, first_image=first_image)
        memory = MemoryMap(self.program.config)
        memory.end = self.end
        units = []
        late = np.zeros(0, masks.DTYPE)
        if here.conditions is not None:
            late = here.conditions.records(self.program.config)
        late_region = memory.add("late_masks", late.shape, masks.WORD_BYTES)
        for number, (unit, (mac, feature)) in enumerate(zip(self.units, encode(self, here, first_image), strict=True)):
            mac_region = memory.add(f"mac_events/{number}", mac.shape, events.EVENT_BYTES)
            feature_region = memory.add(f"feature_events/{number}", feature.shape, events.EVENT_BYTES)
            units.append(
                replace(
                    unit,
                    mac_events=mac,
                    mac_events_address=mac_region.address,
                    feature_events=feature,
                    feature_events_address=feature_region.address,
                    late_masks=late,
                    late_masks_address=late_region.address,
                )
            )
        _check_memory(memory.end, self.memory_bytes, "fewer faults, ")
        launch = replace(self, units=units, plan=here, first_image=first_image, end=memory.end)
        return replace(launch, max_cycles=self.max_cycles + 256 * (launch.faults + len(late)))


@dataclass(frozen=True)
class _Run:
    """Layers chained on chip: `per_image` of them image by image, the rest once a chunk of images.

    Each layer but the first reads what the one before gives, and nothing else.
    """

    layers: tuple[int, ...]
    per_image: int
    chunk: int
    words: tuple[int, ...]
    """Words that one image of each layer's input takes."""
    tiling: Tiling | None = None
    """If the run is one layer that is tiled."""


def schedule(
    program: Program,
    layers: Sequence[int],
    batch: int,
    *,
    writeback: bool,
    units: int = 1,
    memory_bytes: int = 1 << 63,
) -> Launch:
    """Plan one launch.

    Parameters
    ----------
    program : Program
    layers : positions of consecutive layers, all placed on the accelerator
    batch : int
        Images, at least 1.
    writeback : bool
        Write every layer's convolution output and final output to memory, not only the last.
    units : int
        Compute units of the device; the batch is split over them.
    memory_bytes : int
        Size of device memory.

    Raises
    ------
    CompileError
        If a layer does not fit the accelerator.
    MemoryTooSmall
        If device memory cannot hold the launch.
    """
    positions = tuple(layers)
    if batch < 1:
        raise ValueError(f"a launch needs at least one image, not {batch}")
    if not positions or positions != tuple(range(positions[0], positions[0] + len(positions))):
        raise ValueError(f"a launch needs consecutive layers, not {positions}")
    for at in positions:
        check_accelerator(program.layers[at], program.config)
    config, chain = program.config, [program.layers[at] for at in positions]
    shares = [batch // units + (unit < batch % units) for unit in range(units)]
    shares = [share for share in shares if share]
    runs = _split(program, positions, max(shares))

    memory = weights_map(program)
    inputs = _inputs(program, positions)
    for source in inputs:
        memory.add(input_name(source), tensor_shape(program.tensor_shape(source), batch, config.vec))
    needed = _needed(program, runs)
    written = []
    for at, layer in zip(positions, chain, strict=True):
        if writeback and conv_is_separate(layer):
            memory.add(conv_name(layer.name), tensor_shape(layer.conv_shape, batch, config.vec))
            written.append(conv_name(layer.name))
        if writeback or at in needed:
            memory.add(out_name(layer.name), tensor_shape(layer.out_shape, batch, config.vec))
            written.append(out_name(layer.name))
    built, first = [], 0
    for number, share in enumerate(shares):
        writer = _Writer(program, memory.regions, frozenset(written))
        for run in runs:
            writer.run(run, first, share)
        first += share
        region = memory.add(f"descriptors/{number}", (len(writer.jobs),), descriptor.DESCRIPTOR_BYTES)
        none = np.zeros(0, events.DTYPE)
        records = _packed(writer.records)
        built.append(Unit(records, region.address, tuple(writer.jobs), none, memory.end, none, memory.end))
    _check_memory(memory.end, memory_bytes, "")
    if memory.end > config.reach:
        raise MemoryTooSmall(
            f"the launch needs {memory.end} bytes of device memory, and the addresses of this build "
            f"(address_bits={config.address_bits}) reach {config.reach}: use a smaller batch, or build with more"
        )
    for unit in built:
        _check_widths(unit, program)
    return Launch(
        program=program,
        positions=positions,
        inputs=inputs,
        batch=batch,
        writeback=writeback,
        units=built,
        memory=dict(memory.regions),
        written=tuple(written),
        end=memory.end,
        memory_bytes=memory_bytes,
        max_cycles=max(_cycle_bound(unit.descriptors, config) for unit in built),
    )


def _inputs(program: Program, positions: tuple[int, ...]) -> dict[str, int]:
    """Tensors read from outside these layers, in the order of their first use, with their channels."""
    own = {program.layers[at].name for at in positions}
    reads = [source for at in positions for source in program.layers[at].sources if source not in own]
    return {source: program.tensor_shape(source)[0] for source in reads}


def _needed(program: Program, runs: Sequence[_Run]) -> set[int]:
    """Layers whose output something reads from memory: whatever is not the next layer of its run."""
    needed = set()
    for run in runs:
        for at, follower in zip(run.layers, (*run.layers[1:], None), strict=True):
            readers = program.readers(program.layers[at].name)
            if follower is None or readers != (program.layers[follower].name,):
                needed.add(at)
    return needed


def _check_memory(needed: int, available: int, also: str) -> None:
    if needed > available:
        raise MemoryTooSmall(
            f"the launch needs {needed} bytes of device memory, the device has {available}: use {also}a smaller batch "
            f"or a device with memory_bytes={needed} or more"
        )


def _check_widths(unit: Unit, program: Program) -> None:
    """Refuse descriptors whose values the accelerator's build does not hold."""
    config, records, jobs = program.config, unit.descriptors, unit.jobs
    if len(records) > config.max_count:
        raise CompileError(
            program.layers[jobs[-1].layer].name,
            f"the launch has {len(records)} jobs, and this build counts {config.max_count}",
            f"use a smaller batch, or build with more than count_bits={config.count_bits}",
        )
    found = descriptor.too_wide(records, config)
    if found is not None:
        at, name, kept = found
        raise CompileError(
            program.layers[jobs[at].layer].name,
            f"its {name} of {int(records[at][name])} does not fit the {kept} bits that this build keeps of it",
            f"build with more than address_bits={config.address_bits}, count_bits={config.count_bits}, "
            f"extent_bits={config.extent_bits}, or {CPU_REMEDY}",
            "accelerator",
        )


# -- on-chip allocation
#
# Tensor i of a run is the input of its i-th layer and lies in buffer A for even i, B for odd i. Tensors of one image
# lie at the bottom of their buffer, each reusing the place of the one before the last; the slots that collect the
# chunk's images for the first batched layer lie at the top of theirs.


def _split(program: Program, positions: tuple[int, ...], images: int) -> list[_Run]:
    """Cut the layers into as few runs as fit on chip; between runs tensors go through memory."""
    runs: list[_Run] = []
    at = 0
    while at < len(positions):
        best: _Run | None = None
        for end in range(at + 1, len(positions) + 1):
            run = _fit(program, positions[at:end], images)
            if run is None:
                break
            best = run
        best = best or _tiled(program, positions[at])
        runs.append(best)
        at += len(best.layers)
    return runs


def _fit(program: Program, positions: tuple[int, ...], images: int) -> _Run | None:
    """The run with the largest chunk that fits, or None."""
    layers = [program.layers[at] for at in positions]
    if not _chained(program, positions[-2:]):
        return None
    capacity = program.config.feature_words
    if not all(fits_on_chip(layer, program.config) for layer in layers):
        return None
    words = tuple(layer_words(layer, program.config) for layer in layers)
    per_image = next((i for i, layer in enumerate(layers) if is_fully_connected(layer)), len(layers))
    chunk = min(images, program.config.max_extent)
    if per_image < len(layers):
        beside = max((words[i] for i in range(per_image) if i % 2 == per_image % 2), default=0)
        chunk = min(chunk, (capacity - beside) // words[per_image], *(capacity // w for w in words[per_image:]))
    if chunk < 1:
        return None
    # Equal chunks instead of full ones and a remainder.
    chunk = ceil_div(images, ceil_div(images, chunk)) if per_image < len(layers) else chunk
    return _Run(positions, per_image, chunk, words)


def _chained(program: Program, positions: tuple[int, ...]) -> bool:
    """Whether the second of two layers reads the first one's output, and that as it lies on chip."""
    if len(positions) < 2:
        return True
    before, layer = (program.layers[at] for at in positions)
    reads_it = layer.sources == (before.name,) and layer.reads_whole
    return reads_it and reading(layer, program.config).in_order


def _tiled(program: Program, position: int) -> _Run:
    """A run of one layer that does not fit on chip: from memory to memory, tile by tile."""
    layer, config = program.layers[position], program.config
    return _Run((position,), 1, 1, (layer_words(layer, config),), tiling(layer, config))


def _whole(layer: Layer, config: Config) -> Tile:
    """A layer that is not tiled, as one tile."""
    return Tile(whole(row_axis(layer)), whole(column_axis(layer)), 0, len(arrange(layer, config).first))


class _Span(NamedTuple):
    """Words of one feature buffer."""

    buffer: int
    first: int
    words: int

    def meets(self, other: _Span) -> bool:
        return (
            self.buffer == other.buffer
            and self.first < other.first + other.words
            and other.first < self.first + self.words
        )


class _Box(NamedTuple):
    """What of each channel group lies on chip, and in which order: `[planes][rows][columns]`, or with `by_rows`
    `[rows][planes][columns]`."""

    top: int
    rows: int
    left: int
    columns: int
    planes: int
    single_row: bool
    """Whether it may lie `by_rows`: the job computes one row of the convolution only, of some rows and columns."""

    @staticmethod
    def of(tile: Tile, layer: Layer, how: Reading) -> _Box:
        """What a tile reads."""
        rows, columns = tile.rows, tile.columns
        extents = rows.in_first, rows.in_size, columns.in_first, columns.in_size
        return _Box(*extents, how.planes, rows.conv_size == 1 and _cut_both_ways(rows.in_size, columns.in_size, layer))

    @property
    def words(self) -> int:
        return self.planes * self.rows * self.columns

    @property
    def by_rows(self) -> bool:
        """Whichever order takes fewer loads."""
        return self.single_row and self.rows < self.planes

    @property
    def plane(self) -> int:
        """Words from one channel group to the next."""
        return self.columns if self.by_rows else self.rows * self.columns

    @property
    def row(self) -> int:
        """Words from one row to the next."""
        return self.planes * self.columns if self.by_rows else self.columns

    def shifted(self, source: int, pad_y: int) -> int:
        """`src_base` of a box that lies at `source`: rows of padding above count as `columns` words each."""
        return (source + pad_y * (self.columns - self.row)) % (1 << 32)

    def loads(self, piece: Piece, in_h: int, in_w: int, images: int) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(word on chip, channel group, row, words, segments, words from a segment to the next) of a piece's loads."""
        at = piece.at * self.plane
        size = self.rows * self.columns
        if (self.rows, self.columns) == (in_h, in_w):
            words = images * piece.planes * size
            yield at, piece.group, 0, words, 1, words
        elif self.by_rows:
            for row in range(self.rows):
                yield at + row * self.row, piece.group, self.top + row, self.columns, piece.planes, in_h * in_w
        elif self.columns == in_w:
            # These rows of every channel group's plane.
            yield at, piece.group, self.top, size, piece.planes, in_h * in_w
        elif self.rows == in_h:
            yield at, piece.group, 0, self.columns, piece.planes * in_h, in_w
        else:
            for plane in range(piece.planes):
                yield at + plane * size, piece.group + plane, self.top, self.columns, self.rows, in_w


def _cut_both_ways(rows: int, columns: int, layer: Layer) -> bool:
    """Whether these are neither all rows of the input nor all columns."""
    return rows < layer.in_shape[1] and columns < layer.in_shape[2]


def _inside(first: int, size: int, extent: int) -> tuple[int, int, int]:
    """Of `size` positions from `first` on: the first within 0 to `extent - 1`, how many lie before it, how many are."""
    begin, end = max(0, first), min(extent, first + size)
    return begin, begin - first, max(0, end - begin)


@dataclass
class _Writer:
    """Writes the descriptors of one compute unit."""

    program: Program
    memory: dict[str, Region]
    written: frozenset[str]
    """Regions to write."""
    records: list[Records] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    produced: dict[str, int] = field(default_factory=dict)
    """Job that last wrote a region."""
    fenced: int = 0
    """The latest job with a fence: writes of jobs before it are complete."""
    previous: tuple[_Span, ...] = ()
    """On-chip words that the last job that computes reads and stores, unless a fence has waited for it since."""
    buffer: int = 1
    """Buffer that it reads."""
    resident: dict[int, bytes] = field(default_factory=dict)
    """By buffer: the loads of what a job with one output left there."""

    @property
    def config(self) -> Config:
        return self.program.config

    def run(self, run: _Run, first: int, images: int) -> None:
        """All of a unit's images through one run."""
        if run.tiling is not None:
            for image in range(images):
                for tile in run.tiling.tiles:
                    if run.tiling.parts:
                        self.outputs(run.layers[0], first + image, tile, run.tiling.parts)
                    else:
                        self.job(run, 0, 0, 0, first + image, 1, tile)
            return
        top = self.config.feature_words - run.chunk * run.words[run.per_image] if run.per_image < len(run.layers) else 0
        for start in range(0, images, run.chunk):
            chunk = min(run.chunk, images - start)
            for i in range(chunk):
                for at in range(run.per_image):
                    source = self._image_base(run, start + i) if at == 0 else 0
                    to_slots = at + 1 == run.per_image < len(run.layers)
                    target = top + i * run.words[at + 1] if to_slots else 0
                    self.job(run, at, source, target, first + start + i, 1)
            for at in range(run.per_image, len(run.layers)):
                source = top if at == run.per_image and at > 0 else 0
                self.batched(run, at, source, first + start, chunk)

    def batched(self, run: _Run, at: int, source: int, first: int, images: int) -> None:
        """A fully connected layer over a chunk: one job, or one an image if its weights do not fit the ring."""
        layer = self.program.layers[run.layers[at]]
        if steps(layer, self.config) <= self.config.weight_words or images == 1:
            self.job(run, at, source, 0, first, images)
            return
        for i in range(images):
            target = i * run.words[at + 1] if at + 1 < len(run.layers) else 0
            # When the layer is the run's first, each image's input is loaded by its own job.
            self.job(run, at, source + i * run.words[at], target, first + i, 1)

    def _image_base(self, run: _Run, image: int) -> int:
        """Where an image's input goes, chosen so that it can be loaded while the image before finishes."""
        capacity, last = self.config.feature_words, run.per_image - 1
        if last % 2 == 1:
            return 0  # the job before reads the other buffer
        beside = run.words[last]
        if beside + run.words[0] > capacity:
            return 0
        return beside * (image % 2) if last == 0 else beside

    def job(
        self, run: _Run, at: int, source: int, target: int, first: int, images: int, tile: Tile | None = None
    ) -> None:
        """One descriptor: layer `at` of the run on images `first` to `first + images - 1` of the launch.

        `tile` is what of a tiled layer. Tiles take both buffers in turn, so that one loads while another computes.
        """
        position = run.layers[at]
        layer, config = self.program.layers[position], self.config
        tiled, tile = tile is not None, tile or _whole(layer, config)
        how = reading(layer, config)
        if run.tiling is not None and not run.tiling.in_bands:
            how = chunk_reading(layer, config, tile.first_group, tile.groups)
        # Tiles take the other buffer than the job before, which stored nothing: it was a tile, or the last of its run.
        buffer = 1 - self.buffer if tiled else at % 2
        box = _Box.of(tile, layer, how)
        self.resident.clear()
        record = np.zeros((), descriptor.DTYPE)
        if at == 0:
            loads = self._loads(position, how.pieces, source, first, images, box)
            record = self._load(loads, buffer, Job(position, first, images, tile, 0, 0))
        touches = [_Span(buffer, source, images * box.words)]
        self._source(record, position, how, source, images, tile, box)
        flags = int(record["flags"]) | (Flag.SRC_B if buffer else 0)
        if at + 1 < len(run.layers):
            flags |= Flag.STORE | (Flag.DST_B if (at + 1) % 2 else 0)
            _, pool_h, pool_w = layer.out_shape
            record["dst_base"], record["dst_plane"] = target, pool_h * pool_w
            record["dst_image"] = run.words[at + 1]
            touches.append(_Span((at + 1) % 2, target, images * run.words[at + 1]))
        record["flags"] = flags
        self._written(record, layer, first, tile)
        for part in how.parts:
            self.records.append(self._part(record, position, part))
            self.jobs.append(Job(position, first, images, tile, part.first, part.groups))
            # What the first part needed is on chip.
            record["flags"] &= ~np.uint32(Flag.LOAD | Flag.FENCE)
            for name in LOAD_FIELDS:
                record[name] = 0
        self.produced[out_name(layer.name)] = len(self.jobs) - 1
        self.previous, self.buffer = tuple(touches), buffer

    def outputs(self, position: int, image: int, tile: Tile, parts: tuple[Taps, ...]) -> None:
        """The jobs of a tile each of whose outputs is computed by itself, its reduction in parts."""
        layer = self.program.layers[position]
        rows, columns = tile.rows, tile.columns
        pixels = list(product(range(rows.conv_first, rows.conv_end), range(columns.conv_first, columns.conv_end)))
        for number, (y, x) in enumerate(pixels):
            for taps in parts:
                flags = 0 if taps is parts[0] else Flag.CONTINUE
                if taps is not parts[-1]:
                    flags |= Flag.PARTIAL
                else:
                    flags |= (Flag.RESUME if number else 0) | (Flag.MORE if number + 1 < len(pixels) else 0)
                self._output(position, image, tile, Output(y, x, taps), flags)
        self.produced[out_name(layer.name)] = len(self.jobs) - 1

    def _output(self, position: int, image: int, tile: Tile, output: Output, flags: int) -> None:
        """A job that computes a part of one output."""
        layer, config = self.program.layers[position], self.config
        taps, (_, in_h, in_w), group = output.taps, layer.in_shape, tile.first_group
        top, pad_y, rows = _inside(output.y * layer.stride[0] - layer.padding[0] + taps.ky, taps.rows, in_h)
        left, pad_x, columns = _inside(output.x * layer.stride[1] - layer.padding[1] + taps.kx, taps.columns, in_w)
        pieces = window_pieces(layer, config, group, taps.z, taps.planes) if rows and columns else ()
        planes = sum(piece.planes for piece in pieces)
        box = _Box(top, rows, left, columns, planes, _cut_both_ways(rows, columns, layer))
        buffer = 1 - self.buffer
        loads = self._loads(position, pieces, 0, image, 1, box)
        job = Job(position, image, 1, tile, group, 1, output)
        record = np.zeros((), descriptor.DTYPE)
        content = b"".join(load.tobytes() for _, load in loads)
        if content and self.resident.get(buffer) != content:
            record = self._load(loads, buffer, job._replace(groups=0))
            self.resident[buffer] = content
        record["flags"] |= flags | (Flag.SRC_B if buffer else 0)
        record["src_period"] = 1
        self._geometry(record, layer, tile)
        record["in_h"], record["in_w"] = (rows, columns) if pieces else (0, 0)
        record["pad_y"], record["pad_x"] = (pad_y, pad_x) if pieces else (0, 0)
        record["kernel_h"], record["kernel_w"], record["groups_in"] = taps.rows, taps.columns, taps.planes
        if pieces:
            record["src_plane"], record["src_tap"] = box.plane, box.row
            record["src_base"] = box.shifted(0, pad_y)
        record["images"], record["steps"], record["weight_passes"] = 1, taps.steps, 1
        self._written(record, layer, image, tile)
        record = self._part(record, position, Part(group, 1, 0, 1, 0))
        record["weight_addr"] += taps.first_step * config.lanes * config.vec
        self.records.append(record)
        self.jobs.append(job)
        self.previous, self.buffer = (_Span(buffer, 0, box.words),), buffer

    def _source(
        self, record: Records, position: int, how: Reading, source: int, images: int, tile: Tile, box: _Box
    ) -> None:
        """Fill in what is computed from what lies on chip, for all output groups alike."""
        layer, config = self.program.layers[position], self.config
        self._geometry(record, layer, tile)
        record["src_base"], record["src_plane"] = box.shifted(source, tile.rows.pad), box.plane
        record["src_image"], record["src_tap"] = box.words, box.row
        record["in_h"], record["in_w"] = tile.rows.in_size, tile.columns.in_size
        record["kernel_h"], record["kernel_w"] = layer.kernel
        if how.operands == 2:
            # The second operand is a second row of the kernel, and lies behind the first.
            record["kernel_h"], record["in_h"], record["src_tap"] = 2, tile.rows.in_size + 1, box.words // 2
        record["pad_y"], record["pad_x"] = tile.rows.pad, tile.columns.pad
        record["groups_in"] = how.groups_in
        needed = steps(layer, config)
        record["images"], record["steps"], record["weight_passes"] = images, needed, 1
        outputs = images * tile.rows.conv_size * tile.columns.conv_size
        if needed > config.weight_words and outputs > 1:
            record["weight_passes"] = outputs
            record["flags"] |= Flag.STREAM

    def _geometry(self, record: Records, layer: Layer, tile: Tile) -> None:
        """Fill in what becomes of a tile's accumulators."""
        record["out_h"], record["out_w"] = tile.rows.conv_size, tile.columns.conv_size
        record["stride_y"], record["stride_x"] = layer.stride
        record["flags"] |= Flag.RELU if layer.relu else 0
        record["upper"] = layer.upper
        record["pool_kernel"] = record["pool_stride"] = 1
        if layer.pool is not None:
            record["flags"] |= Flag.POOL
            record["pool_kernel"], record["pool_stride"] = layer.pool.kernel, layer.pool.stride
            record["pool_pad"] = layer.pool.pad
        record["pool_h"], record["pool_w"] = tile.rows.out_size, tile.columns.out_size

    def _written(self, record: Records, layer: Layer, first: int, tile: Tile) -> None:
        """Fill in where a tile's results go in memory: its first image's, row's and column's place in
        `[N][C/VEC][H][W][VEC]`."""
        rows, columns = tile.rows, tile.columns
        for flag, which, name, row, column, width in (
            (Flag.WRITE_CONV, "conv", conv_name(layer.name), rows.conv_first, columns.conv_first, columns.conv_size),
            (Flag.WRITE_POOL, "pool", out_name(layer.name), rows.out_first, columns.out_first, columns.out_size),
        ):
            if name not in self.written:
                continue
            region = self.memory[name]
            batch, groups, _, full, vec = region.shape
            image = region.nbytes // batch
            record["flags"] |= flag
            record[f"{which}_addr"] = region.address + first * image + (row * full + column) * vec
            record[f"{which}_plane"], record[f"{which}_image"] = image // groups, image
            record[f"{which}_gap"] = (full - width) * vec

    def _part(self, whole: Records, position: int, part: Part) -> Records:
        """The record of some output groups of a job."""
        layer, config = self.program.layers[position], self.config
        record = np.zeros((), descriptor.DTYPE)
        record[()] = whole  # its padding bytes zero too
        plane = int(whole["src_plane"])
        record["src_base"] = (int(whole["src_base"]) + part.plane * plane) % (1 << 32)
        record["src_step"], record["src_period"] = part.step * plane, part.period
        record["groups_out"] = part.groups
        for region, which in ((weights_name(layer.name), "weight_addr"), (params_name(layer.name), "param_addr")):
            region_at = self.memory[region]
            record[which] = region_at.address + part.first * (region_at.nbytes // region_at.shape[0])
        # Channel groups of VEC: of a tiled layer, a part may begin within one, and its address says where.
        stored, within = divmod(part.first * config.lanes, config.vec)
        ends = ceil_div((part.first + part.groups) * config.lanes, config.vec)
        record["dst_groups"] = min(ends, ceil_div(layer.out_channels, config.vec)) - stored
        for which, moved in (("dst_base", "dst_plane"), ("conv_addr", "conv_plane"), ("pool_addr", "pool_plane")):
            record[which] += stored * int(record[moved])
        for flag, which in ((Flag.WRITE_CONV, "conv_addr"), (Flag.WRITE_POOL, "pool_addr")):
            record[which] += within if record["flags"] & flag else 0
        return record

    def _load(self, loads: list[tuple[str, Records]], buffer: int, job: Job) -> Records:
        """Records of all loads for a job but the last, and a record with the last one, to be completed."""
        waiting = [
            self._must_wait(region, _Span(buffer, int(load["load_base"]), _words(load))) for region, load in loads
        ]
        # Those that need not wait go first: they load while the job before computes.
        order = sorted(range(len(loads)), key=waiting.__getitem__)
        for number, at in enumerate(order):
            record = np.zeros((), descriptor.DTYPE)
            record[()] = loads[at][1]
            record["flags"] = Flag.LOAD | (Flag.SRC_B if buffer else 0)
            if waiting[at] and (number == 0 or not waiting[order[number - 1]]):
                record["flags"] |= Flag.FENCE
                self.fenced, self.previous = len(self.records), ()
            if number + 1 < len(order):
                record["flags"] |= Flag.LOAD_ONLY
                self.records.append(record)
                self.jobs.append(job)
        # Rows arrive in turn only where all columns lie on chip, and an output's window is not all that is loaded.
        full_width = job.tile.columns.in_size == self.program.layers[job.layer].in_shape[2]
        if len(loads) == 1 and job.images == 1 and job.output is None and full_width:
            self._in_chunks(record, self.program.layers[job.layer], job.tile.rows.in_size)
        return record

    def _in_chunks(self, load: Records, layer: Layer, rows: int) -> None:
        """Load an image's channel groups in turn, a chunk of rows of each, so that the array need not wait for all."""
        _, in_h, in_w = layer.in_shape
        at_once = ceil_div(CHUNK_BEATS * self.config.port_bytes, in_w * self.config.vec)
        if at_once >= rows or at_once * in_w > self.config.max_extent:
            return
        load["load_segments"] = _words(load) // (rows * in_w)
        load["load_words"], load["load_stride"] = rows * in_w, in_h * in_w * self.config.vec
        load["load_chunk"], load["load_rows"] = at_once * in_w, at_once

    def _must_wait(self, region: str, target: _Span) -> bool:
        """Whether a load reads what may not be written yet, or overwrites what the job before uses."""
        unfinished = self.produced.get(region, -1) >= self.fenced
        return unfinished or any(target.meets(span) for span in self.previous)

    def _loads(
        self, position: int, pieces: tuple[Piece, ...], source: int, first: int, images: int, box: _Box
    ) -> list[tuple[str, Records]]:
        """Loads of what a job reads, with the regions that they read."""
        layer, vec = self.program.layers[position], self.config.vec
        _, in_h, in_w = layer.in_shape
        loads = []
        for piece in pieces:
            name = layer.sources[piece.source]
            region_name = out_name(name) if out_name(name) in self.memory else input_name(name)
            region = self.memory[region_name]
            image_bytes = region.nbytes // region.shape[0]
            # Images that follow each other both in memory and on chip are one load.
            together = images if piece.planes == box.planes == region.shape[1] else 1
            for image in range(0, images, together):
                base = region.address + (first + image) * image_bytes
                for at, plane, row, words, segments, stride in box.loads(piece, in_h, in_w, together):
                    load = np.zeros((), descriptor.DTYPE)
                    load["load_base"] = source + image * box.words + at
                    load["load_addr"] = base + ((plane * in_h + row) * in_w + box.left) * vec
                    load["load_words"], load["load_segments"], load["load_stride"] = words, segments, stride * vec
                    loads.append((region_name, load))
        return loads


def _words(load: Records) -> int:
    """Words that a load writes on chip."""
    return int(load["load_words"]) * int(load["load_segments"])


def _packed(records: list[Records]) -> Records:
    """One array, its padding bytes zero too (numpy's own joining leaves them undefined)."""
    joined = np.zeros(len(records), descriptor.DTYPE)
    for at, record in enumerate(records):
        joined[at] = record
    return joined


def _cycle_bound(records: Records, config: Config) -> int:
    """Many times what the slowest sensible memory takes: beyond it, the device hangs."""
    total = 1_000_000
    for record in records:
        groups, images, steps = int(record["groups_out"]), int(record["images"]), int(record["steps"])
        outputs = groups * images * int(record["out_h"]) * int(record["out_w"])
        outputs = 1 if int(record["flags"]) & Flag.ONE else outputs
        weights = groups * steps * config.lanes * config.vec * max(1, int(record["weight_passes"]))
        loaded = int(record["load_words"]) * int(record["load_segments"])
        features = (loaded + 2 * outputs * ceil_div(config.lanes, config.vec)) * config.vec
        beats = ceil_div(weights, config.port_bytes) + ceil_div(features, config.vec)
        total += 4 * outputs * steps + 64 * beats + 10_000
        if config.control == "microcode":  # one thing after the other: every word, every step's weights, every output
            total += 100 * outputs * steps * config.lanes + 5_000 * outputs + 1_000 * loaded
    return total
