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
from host.schedule.tiling import Band, band_words, bands, whole
from host.verification.cases import Case, random_case
from host.verification.verify import expected_jobs, make_device, run_case, verify
from hw import layout
from hw.config import Config
from hw.descriptor import Flag
from tests.host.executor import Executor

TINY = tuple(
    Config(
        lanes=lanes, vec=vec, feature_bytes=size, weight_bytes=2048, port_bits=64, pool_columns=32, saboteur=size < 2048
    )
    for lanes, vec, size in ((4, 4, 256), (2, 4, 512), (8, 4, 512), (4, 8, 1024), (4, 4, 2048))
)


def with_executor(name: str, config: Config, units: int) -> Device:
    return Executor(config, units=units) if name == "executor" else make_device(name, config, units)


def bands_of(launch: Launch) -> list[Band]:
    return [job.band for unit in launch.units for job in unit.jobs]


def tiled(case: Case) -> bool:
    program = case.program
    return any(
        job.band != whole(program.layers[job.layer])
        for placement, positions in program.segments()
        if placement == "accelerator"
        for unit in schedule(program, positions, 1, writeback=False).units
        for job in unit.jobs
    )


def layer(pool: Pool | None, **changed: object) -> Layer:
    plain = Layer(
        name="conv", sources=(INPUT,), in_shape=(6, 13, 7), out_channels=5, kernel=(3, 3), stride=(1, 1),
        padding=(1, 1), relu=False, pool=pool, in_frac=7, weight_frac=(7,) * 5, out_frac=4,
    )  # fmt: skip
    return replace(plain, **changed)  # type: ignore[arg-type]


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
    assert sum(tiled(random_case(seed, number, configs=TINY)) for number in range(cases)) > cases // 5


POOLS = [
    None, Pool(2, 2), Pool(3, 2), Pool(3, 2, 1), Pool(3, 1, 2), Pool(2, 1, 1), Pool(1, 3), Pool(3, 3, 2), Pool(2, 3, 1),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_bands_fit_and_cover_every_row(pool: Pool | None, stride: int, padding: int) -> None:
    config = Config(lanes=4, vec=4, port_bits=64)
    for height in (9, 14, 23):
        which = layer(pool, in_shape=(6, height, 7), stride=(stride, 1), padding=(padding, 1))
        _, conv_rows, _ = which.conv_shape
        _, rows, _ = which.out_shape
        for words in (2 * 7 * 9, 2 * 7 * 12):
            try:
                cut = bands(which, words, config)
            except ValueError:
                continue
            assert all(band_words(which, b.in_rows, config) <= words for b in cut)
            assert {row for b in cut for row in range(b.conv_first, b.conv_end)} == set(range(conv_rows))
            # Each row is kept once, and no band that comes later leaves an incomplete one in its place.
            kept = Counter(row for b in cut for row in range(b.kept_first, b.out_end))
            assert kept == Counter(range(rows))
            last: dict[int, Band] = {}
            for b in cut:
                last |= dict.fromkeys(range(b.out_first, b.out_end), b)
            assert all(b.kept_first <= row for row, b in last.items())


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("writeback", [False, True])
def test_every_flip_of_every_output_lands_wherever_it_is_computed(pool: Pool | None, writeback: bool) -> None:
    config = Config(lanes=4, vec=4, feature_bytes=512, weight_bytes=2048, port_bits=64, pool_columns=16, saboteur=True)
    program = made(layer(pool), config)
    channels, height, width = program.layers[0].conv_shape
    outputs = np.arange(channels * height * width)
    x = np.random.default_rng(1).integers(-128, 128, (2, 6, 13, 7)).astype(np.int8)
    rng = np.random.default_rng(2)
    where = np.concatenate([outputs, outputs])
    image = np.repeat([5, 6], len(outputs))
    step = rng.integers(0, steps(program.layers[0], program.config), len(where))
    site = np.full(len(where), SITES.index("mac"))
    bit = rng.integers(8, 20, len(where))
    mac = FaultPlan(program.names, image, np.zeros_like(image), site, where, step, bit)
    launch = schedule(program, [0], 2, writeback=writeback).with_faults(mac, 5)
    computed = 2 * channels * width * sum(b.conv_rows for b in bands_of(launch)) // 2
    assert sum(len(unit.mac_events) for unit in launch.units) == computed
    plan = mac + SoftErrors(0.02, sites=("feature",)).draw(program, 5, 2, 1)
    found, wanted = (
        Runtime(program, device).forward(x, writeback=writeback, plan=plan, first_image=5)
        for device in (Executor(config), ReferenceDevice(config))
    )
    for name in wanted.out:
        assert np.array_equal(found.out[name], wanted.out[name])
    for name in wanted.conv:
        assert np.array_equal(found.conv[name], wanted.conv[name])


def test_bands_load_while_the_one_before_computes() -> None:
    config = Config(lanes=4, vec=4, feature_bytes=1024, weight_bytes=2048, port_bits=64)
    x = torch.rand(2, 4, 20, 20)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 4, 3))
    program = compile_network(net, config, calibrate=x)
    launch = schedule(program, range(2), 2, writeback=False)
    flags = launch.units[0].descriptors["flags"]
    first = [job.layer for job in launch.units[0].jobs].index(1)
    assert len(set(bands_of(launch)[:first])) > 1
    assert not (flags[:first] & Flag.FENCE).any()
    buffers = [bool(f & Flag.SRC_B) for f in flags[:first]]
    assert all(a != b for a, b in zip(buffers, buffers[1:], strict=False))
    # Only the next layer waits, once, for what this one writes.
    assert [bool(f & Flag.FENCE) for f in flags[first:]].count(True) == 1


def test_probe_records_expected_of_bands_are_the_rows_of_the_layer() -> None:
    seen = 0
    for number in range(40):
        case = random_case(3, number, configs=TINY[:2])
        case = replace(case, writeback=True, units=1)
        for snapshot in run_case(case, ReferenceDevice(case.program.config)):
            for job in expected_jobs(snapshot, snapshot):
                seen += job.job.band != whole(job.layer)
                name = (memory.conv_name if job.layer.pool else memory.out_name)(job.layer.name)
                region = snapshot.launch.memory[name]
                tensor = snapshot.regions[name].view(np.int8).reshape(region.shape)
                tensor = layout.recover_features(tensor, job.layer.out_channels)
                values = job.requant if job.layer.pool else job.pool
                for at in (0, len(values) // 2, len(values) - 1):
                    group, image, y, x, _ = job.output((at + 1) * job.steps - 1)
                    channels = slice(group * case.program.config.lanes, (group + 1) * case.program.config.lanes)
                    right = tensor[image, channels, y, x]
                    assert np.array_equal(values[at, : len(right)], right)
    assert seen > 20


def test_a_layer_of_which_no_row_fits_is_refused_with_the_size_that_would_do() -> None:
    config = Config(lanes=4, vec=4, feature_bytes=256, weight_bytes=2048, port_bits=64)
    wide = layer(None, in_shape=(6, 13, 15))
    with pytest.raises(CompileError, match="360 bytes on chip even in bands of one output row.*feature_bytes=512"):
        made(wide, config)
    assert bands(wide, 512 // 4, config)
    flat = layer(None, in_shape=(6, 8, 7), kernel=(8, 7), padding=(0, 0))
    with pytest.raises(CompileError, match="448 bytes on chip, a feature buffer holds 256"):
        made(flat, config)
