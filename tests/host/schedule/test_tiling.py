"""Tiled layers: bands of rows give the bytes that the whole layer gives, with the faults of every copy of a row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.device import Device
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.plan import SITES, FaultPlan
from host.program.arrangement import steps
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.schedule import memory
from host.schedule.launch import Launch, schedule
from host.schedule.tiling import Tile, cut, effort, reduction_parts, row_axis, whole
from host.verification.cases import Case, random_case
from host.verification.verify import expected_jobs, make_device, run_case, verify
from hw import layout
from hw.config import Config
from hw.descriptor import Flag
from tests.host.executor import Executor

TINY = tuple(
    Config(
        lanes=lanes, vec=vec, feature_bytes=size, weight_bytes=weights, port_bits=64, pool_columns=columns,
        saboteur=size < 2048,
    )
    for lanes, vec, size, weights, columns in (
        (2, 4, 256, 256, 3), (4, 4, 256, 512, 8), (2, 4, 512, 2048, 5), (8, 4, 512, 2048, 32), (4, 8, 1024, 1024, 6),
        (2, 8, 512, 256, 4), (4, 4, 2048, 2048, 32),
    )
)  # fmt: skip


def with_executor(name: str, config: Config, units: int) -> Device:
    return Executor(config, units=units) if name == "executor" else make_device(name, config, units)


def tiles_of(launch: Launch) -> list[Tile]:
    """Of the jobs that compute."""
    return [job.tile for unit in launch.units for job in unit.jobs if job.groups]


def efforts(case: Case) -> set[int]:
    """How much the accelerator's layers are cut (`host.schedule.tiling.effort`)."""
    program = case.program
    return {effort(layer, program.config) for layer in program.layers if layer.placement == "accelerator"}


def layer(pool: Pool | None, **changed: object) -> Layer:
    plain = Layer(
        name="conv", sources=(INPUT,), in_shape=(6, 13, 7), out_channels=5, kernel=(3, 3), stride=(1, 1),
        padding=(1, 1), relu=False, pool=pool, in_frac=7, weight_frac=(7,) * 5, out_frac=4,
    )  # fmt: skip
    return replace(plain, source_channels=(), **changed)  # type: ignore[arg-type]


def made(which: Layer, config: Config) -> Program:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, which.weight_shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, which.out_channels).astype(np.int32)
    return Program(config, (which,), {which.name: weight}, {which.name: bias}, which.in_shape, which.in_frac)


def test_random_tiled_layers_give_the_references_bytes_with_faults_in_every_copy() -> None:
    cases, seed = 200, 11
    report = verify(("reference", "executor"), cases, seed, make=with_executor, configs=TINY)
    assert report.ok, str(report)
    assert report.faulty_cases > cases // 3
    found = Counter(kind for number in range(cases) for kind in efforts(random_case(seed, number, configs=TINY)))
    assert all(found[kind] > cases // 20 for kind in (1, 2, 3)), found


POOLS = [
    None, Pool(2, 2), Pool(3, 2), Pool(3, 2, 1), Pool(3, 1, 2), Pool(2, 1, 1), Pool(1, 3), Pool(3, 3, 2), Pool(2, 3, 1),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_bands_cover_every_position_and_the_last_to_write_one_has_it_complete(
    pool: Pool | None, stride: int, padding: int
) -> None:
    for height in (9, 14, 23):
        which = layer(pool, in_shape=(6, height, 7), stride=(stride, 1), padding=(padding, 1))
        axis = row_axis(which)
        for size in range(1, axis.out + 2):
            made = cut(axis, size)
            assert {row for b in made for row in range(b.conv_first, b.conv_end)} == set(range(axis.conv))
            # Each is kept once, and no band that comes later leaves an incomplete one in its place.
            kept = Counter(row for b in made for row in range(b.kept_first, b.out_end))
            assert kept == Counter(range(axis.out))
            last = {row: b for b in made for row in range(b.out_first, b.out_end)}
            assert all(b.kept_first <= row for row, b in last.items())
            # What each reads is the input that its windows reach.
            for b in made:
                reached = {
                    row * stride - padding + tap
                    for row in range(b.conv_first, b.conv_end)
                    for tap in range(axis.kernel)
                }
                read = set(range(b.in_first, b.in_first + b.in_size))
                assert read == (reached & set(range(height)) if len(made) > 1 else set(range(height)))
                assert b.in_first - b.pad == b.conv_first * stride - padding


@pytest.mark.parametrize("pool", [None, Pool(2, 2), Pool(3, 2, 1)], ids=str)
@pytest.mark.parametrize("config", TINY, ids=lambda c: f"{c.lanes}x{c.vec}-{c.feature_bytes}-{c.pool_columns}")
@pytest.mark.parametrize("groups", [1, 6])
def test_tiles_fit_the_buffers_and_cover_every_output_once(config: Config, pool: Pool | None, groups: int) -> None:
    for height, width, kernel in ((13, 7, 3), (5, 40, 3), (12, 12, 6), (9, 9, 9), (3, 150, 1)):
        which = layer(
            pool if min(height, width) > kernel else None, in_shape=(24, height, width), kernel=(kernel, kernel),
            padding=(0, 0), out_channels=18, weight_frac=(7,) * 18, groups=groups,
        )  # fmt: skip
        program = made(which, config)
        launch = schedule(program, [0], 2, writeback=True)
        loads = launch.units[0].descriptors[(launch.units[0].descriptors["flags"] & Flag.LOAD) != 0]
        ends = loads["load_base"].astype(np.int64) + loads["load_words"].astype(np.int64) * loads["load_segments"]
        assert ends.max() <= config.feature_words
        if which.pool is not None:
            assert launch.units[0].descriptors["pool_w"].max() <= config.pool_columns
        kept: Counter[tuple[int, ...]] = Counter()
        for job in launch.units[0].jobs:
            if not job.groups or (job.output is not None and job.output.taps.first_step):
                continue
            rows, columns, *_ = job.tile
            if job.output is None or (job.output.y, job.output.x) == (rows.conv_first, columns.conv_first):
                for group in range(job.first_group, job.first_group + job.groups):
                    for y in range(rows.kept_first, rows.out_end):
                        for x in range(columns.kept_first, columns.out_end):
                            kept[job.first, group, y, x] += 1
        _, high, wide = which.out_shape
        computed = layout.output_groups(18, config.lanes, config.vec)
        assert kept == Counter(np.ndindex(2, computed, high, wide))


def test_parts_of_a_reduction_are_its_steps_in_order_and_fit() -> None:
    seen = set()
    for config in TINY:
        for channels, height, width, kernel in (
            (70, 5, 5, (5, 5)), (6, 20, 20, (20, 20)), (3, 2, 300, (2, 255)), (4, 200, 2, (200, 2)), (40, 9, 9, (6, 6)),
        ):  # fmt: skip
            which = layer(None, in_shape=(channels, height, width), kernel=kernel, padding=(0, 0))
            taps = [
                (z, ky, kx)
                for part in reduction_parts(which, config)
                for z in range(part.z, part.z + part.planes)
                for ky in range(part.ky, part.ky + part.rows)
                for kx in range(part.kx, part.kx + part.columns)
            ]
            groups = -(-channels // config.vec)
            assert taps == list(np.ndindex(groups, *kernel))
            at = 0
            for part in reduction_parts(which, config):
                assert part.first_step == at
                at += part.steps
                assert part.planes * part.rows * part.columns <= config.feature_words
                seen.add((part.planes > 1, part.rows == kernel[0], part.columns == kernel[1]))
    assert seen >= {(True, True, True), (False, False, True), (False, False, False)}


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize(
    ("size", "pool"),
    [((512, 16), pool) for pool in POOLS]
    + [((256, 4), pool) for pool in (None, Pool(2, 2), Pool(3, 2, 1), Pool(2, 1, 1))]
    + [((256, 3), pool) for pool in (None, Pool(2, 2), Pool(3, 3, 2), Pool(2, 3, 1))],
    ids=str,
)
def test_every_flip_of_every_output_lands_wherever_it_is_computed(
    pool: Pool | None, writeback: bool, size: tuple[int, int]
) -> None:
    features, columns = size
    config = Config(
        lanes=4, vec=4, feature_bytes=features, weight_bytes=2048, port_bits=64, pool_columns=columns, saboteur=True
    )
    deep = {16: 6, 4: 14, 3: 43}[columns]
    program = made(layer(pool, in_shape=(deep, 13, 7)), config)
    channels, height, width = program.layers[0].conv_shape
    wanted_effort = {16: 1, 4: 2, 3: 3}[columns]
    assert pool is not None or effort(program.layers[0], config) == wanted_effort
    outputs = np.arange(channels * height * width)
    x = np.random.default_rng(1).integers(-128, 128, (2, deep, 13, 7)).astype(np.int8)
    rng = np.random.default_rng(2)
    where = np.concatenate([outputs, outputs])
    image = np.repeat([5, 6], len(outputs))
    step = rng.integers(0, steps(program.layers[0], program.config), len(where))
    site = np.full(len(where), SITES.index("mac"))
    bit = rng.integers(8, 20, len(where))
    mac = FaultPlan(program.names, image, np.zeros_like(image), site, where, step, bit)
    launch = schedule(program, [0], 2, writeback=writeback).with_faults(mac, 5)
    areas = sum(y.conv_size * x.conv_size for y, x in launch.tiles(0))
    assert sum(len(unit.mac_events) for unit in launch.units) == 2 * channels * areas
    plan = mac + SoftErrors(0.02, sites=("feature",)).draw(program, 5, 2, 1)
    found, wanted = (
        Runtime(program, device).forward(x, writeback=writeback, plan=plan, first_image=5)
        for device in (Executor(config), ReferenceDevice(config))
    )
    for name in wanted.out:
        assert np.array_equal(found.out[name], wanted.out[name])
    for name in wanted.conv:
        assert np.array_equal(found.conv[name], wanted.conv[name])


def test_the_launch_says_where_tiles_and_parts_begin() -> None:
    config = Config(lanes=4, vec=4, feature_bytes=256, weight_bytes=2048, port_bits=64, pool_columns=4)
    untiled = schedule(made(layer(None, in_shape=(4, 5, 5)), config), [0], 3, writeback=False)
    ((rows, columns),) = untiled.tiles(0)
    assert (rows, columns) == (whole(row_axis(untiled.program.layers[0])),) * 2
    assert untiled.restarts(0) == ()
    cut_both_ways = schedule(made(layer(Pool(3, 2, 1), in_shape=(6, 13, 21)), config), [0], 1, writeback=False)
    begins = {x.conv_first for _, x in cut_both_ways.tiles(0)}
    assert len(begins) > 2
    # The bottom right tile is the first.
    order = [(y.out_end, x.out_end) for y, x in cut_both_ways.tiles(0)]
    assert order[0] == cut_both_ways.program.layers[0].out_shape[1:]
    assert order == sorted(order, reverse=True)
    deep = made(layer(None, in_shape=(90, 13, 7)), config)
    assert schedule(deep, [0], 1, writeback=False).restarts(0) == (0, 54, 108, 162)


@pytest.mark.parametrize("channels", [9, 70])
def test_what_stays_on_chip_is_not_loaded_again(channels: int) -> None:
    """The parts of a reduction that fit both buffers together are loaded once for all output groups."""
    config = Config(lanes=2, vec=4, feature_bytes=512, weight_bytes=2048, port_bits=64)
    flat = layer(None, in_shape=(channels, 8, 8), kernel=(8, 8), padding=(0, 0))
    parts = reduction_parts(flat, config)
    flags = schedule(made(flat, config), [0], 1, writeback=False).units[0].descriptors["flags"]
    loads = int(((flags & Flag.LOAD) != 0).sum())
    groups = layout.output_groups(5, 2, 4)
    assert loads == (len(parts) if len(parts) == 2 else len(parts) * groups)
    assert (channels == 9) == (len(parts) == 2)


def test_bands_load_while_the_one_before_computes() -> None:
    config = Config(lanes=4, vec=4, feature_bytes=1024, weight_bytes=2048, port_bits=64)
    x = torch.rand(2, 4, 20, 20)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 4, 3))
    program = compile_network(net, config, calibrate=x)
    launch = schedule(program, range(2), 2, writeback=False)
    flags = launch.units[0].descriptors["flags"]
    first = [job.layer for job in launch.units[0].jobs].index(1)
    assert len(set(tiles_of(launch)[:first])) > 1
    assert not (flags[:first] & Flag.FENCE).any()
    buffers = [bool(f & Flag.SRC_B) for f in flags[:first]]
    assert all(a != b for a, b in zip(buffers, buffers[1:], strict=False))
    # Only the next layer waits, once, for what this one writes.
    assert [bool(f & Flag.FENCE) for f in flags[first:]].count(True) == 1


def test_probe_records_expected_of_tiles_are_what_the_layer_gives_there() -> None:
    seen: Counter[int] = Counter()
    for number in range(60):
        case = random_case(3, number, configs=TINY[:2])
        case = replace(case, writeback=True, units=1)
        for snapshot in run_case(case, ReferenceDevice(case.program.config)):
            for job in expected_jobs(snapshot, snapshot):
                seen[effort(job.layer, case.program.config)] += 1
                name = (memory.conv_name if job.layer.pool else memory.out_name)(job.layer.name)
                region = snapshot.launch.memory[name]
                tensor = snapshot.regions[name].view(np.int8).reshape(region.shape)
                tensor = layout.recover_features(tensor, job.layer.out_channels)
                values = job.requant
                if not job.layer.pool:
                    values = job.pool
                for at in {0, len(values) // 2, len(values) - 1} if len(values) else ():
                    group, image, y, x, _ = job.output((at + 1) * job.steps - 1)
                    channels = slice(group * case.program.config.lanes, (group + 1) * case.program.config.lanes)
                    right = tensor[image, channels, y, x]
                    assert np.array_equal(values[at, : len(right)], right)
                final = snapshot.regions[memory.out_name(job.layer.name)].view(np.int8)
                final = final.reshape(snapshot.launch.memory[memory.out_name(job.layer.name)].shape)
                final = layout.recover_features(final, job.layer.out_channels)
                for at in {0, len(job.pool) - 1} if len(job.pool) else ():
                    group, image, y, x = job.final(at)
                    rows, columns, *_ = job.job.tile
                    if y < rows.kept_first or x < columns.kept_first:
                        continue
                    channels = slice(group * case.program.config.lanes, (group + 1) * case.program.config.lanes)
                    right = final[image, channels, y, x]
                    assert np.array_equal(job.pool[at, : len(right)], right)
    assert all(seen[kind] > 20 for kind in range(4)), seen


@pytest.mark.parametrize("kernel", [(12, 13), (256, 2), (3, 300), (300, 7)], ids=str)
def test_kernels_of_any_size_are_computed(kernel: tuple[int, int]) -> None:
    """The descriptor counts 255 taps in a row or column; larger kernels are computed in parts, whatever fits."""
    config = Config(lanes=4, vec=4, feature_bytes=1 << 14, weight_bytes=2048, port_bits=64)
    height, width = kernel
    it = layer(None, in_shape=(5, height + 1, width), kernel=kernel, padding=(1, 0))
    assert (effort(it, config) == 3) == (max(kernel) > 255)
    program = made(it, config)
    x = np.random.default_rng(1).integers(-128, 128, (1, *it.in_shape)).astype(np.int8)
    plan = SoftErrors(1e-3, per="mac").draw(program, 0, 1, 1)
    found, wanted = (
        Runtime(program, device).forward(x, plan=plan).out["conv"]
        for device in (Executor(config), ReferenceDevice(config))
    )
    assert np.array_equal(found, wanted)


def test_only_a_line_buffer_narrower_than_padded_windows_together_is_refused() -> None:
    config = Config(lanes=4, vec=4, feature_bytes=256, weight_bytes=2048, port_bits=64, pool_columns=1)
    assert made(layer(Pool(3, 2)), config)
    with pytest.raises(
        CompileError, match="takes 3 pixels of a row together, the line buffer holds 1; .*pool_columns=3"
    ):
        made(layer(Pool(3, 1, 2)), config)
