"""Graphs of layers: what an independent interpreter makes of the descriptors is what the layers say, with faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.compiler.limits import CompileError
from host.devices.device import LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.models import SoftErrors
from host.program.arrangement import gather
from host.program.integer import run_layer
from host.program.layers import INPUT
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from hw.config import Config
from hw.descriptor import Flag
from tests.host.executor import Executor, Hazard
from tests.host.schedule.graphs import GRAPHS, Graph

ARRAYS = [(2, 4), (4, 4), (8, 8), (16, 8), (4, 8), (8, 16), (2, 16), (4, 16)]


def build(lanes: int, vec: int, features: int, weights: int = 32) -> Config:
    """An array with buffers of so many words."""
    return Config(
        lanes=lanes, vec=vec, feature_bytes=features * vec, weight_bytes=max(256, weights * lanes * vec),
        port_bits=8 * max(4, min(vec, lanes * min(vec, 8))), pool_columns=32, saboteur=True,
    )  # fmt: skip


def same(found: Outputs, wanted: Outputs) -> None:
    """All tensors that were found are those wanted, the last among them."""
    assert list(wanted.out)[-1] in found.out
    for kind in ("out", "conv"):
        for name, tensor in getattr(found, kind).items():
            assert np.array_equal(tensor, getattr(wanted, kind)[name]), (kind, name)


def images(program: Program, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (count, *program.input_shape)).astype(np.int8)


def launches(program: Program, batch: int = 2) -> list[Launch]:
    return [
        schedule(program, positions, batch, writeback=False)
        for placement, positions in program.segments()
        if placement == "accelerator"
    ]


def records(program: Program) -> np.ndarray:
    return np.concatenate([launch.units[0].descriptors for launch in launches(program)])


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a[0]}x{a[1]}")
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("features", "weights", "seed"), [(128, 16, 0), (512, 32, 1), (512, 512, 2), (4096, 16, 3)])
def test_graphs_give_the_references_bytes_with_and_without_faults(
    name: str, array: tuple[int, int], features: int, weights: int, seed: int
) -> None:
    seed = 10 * seed + ARRAYS.index(array)
    graph = GRAPHS[name](seed)
    program = graph.program(build(*array, features, weights))
    x = images(program, 3, seed)
    plan = SoftErrors(3e-4, per="mac").draw(program, 4, 3, seed)
    plan += SoftErrors(3e-4, sites=("feature", "weight", "input")).draw(program, 4, 3, seed)
    reference = Runtime(program, ReferenceDevice(program.config))
    plain, faulty = reference.forward(x), reference.forward(x, plan=plan, first_image=4)
    for writeback, faults, units, wanted in (
        (False, None, 1, plain),
        (True, plan, 2, faulty),
        (False, plan, 1, faulty),
    ):
        device = Executor(program.config, units=units)
        found = Runtime(program, device).forward(x, writeback=writeback, plan=faults, first_image=4)
        same(found, wanted)
        if writeback:
            assert list(found.out) == list(program.names)
    tensors = {INPUT: x}
    for layer in program.layers:
        taken = gather(tensors, layer)
        conv, out = run_layer(taken, program.weights[layer.name], program.biases[layer.name], layer)
        tensors[layer.name] = out
        assert np.array_equal(plain.out[layer.name], out)
        assert np.array_equal(plain.conv[layer.name], conv)


def test_graphs_of_cpu_and_accelerator_layers_exchange_every_tensor_that_is_needed() -> None:
    for name, made in GRAPHS.items():
        program = made(5).program(build(4, 4, 512))
        x = images(program, 2, 0)
        wanted = Runtime(program, ReferenceDevice(program.config)).forward(x)
        rng = np.random.default_rng(7)
        for _ in range(6):
            cpu = [layer for layer in program.names if rng.random() < 0.4]
            mixed = program.with_placement(cpu)
            for writeback in (False, True):
                found = Runtime(mixed, Executor(program.config)).forward(x, writeback=writeback)
                same(found, wanted)
                assert set(found.out) >= set(cpu), name


def test_a_tensor_stays_on_chip_and_is_written_if_something_else_reads_it_too() -> None:
    graph = GRAPHS["residual"](0)
    program = graph.program(build(4, 4, 4096, 512))
    (launch,) = launches(program)
    stem, inner, last, total, down, short, second, average, hidden, output = program.names
    # The stem's next reader finds it on chip, the addition in memory; what only the next layer reads is not written.
    assert launch.written == tuple(f"out/{name}" for name in (stem, last, total, down, short, output))
    flags = dict(zip(launch.units[0].jobs, launch.units[0].descriptors["flags"], strict=True))
    for job, flag in flags.items():
        name = program.layers[job.layer].name
        if job.groups:
            assert bool(flag & Flag.STORE) == (name in (stem, inner, total, second, average, hidden)), name
            assert bool(flag & Flag.WRITE_POOL) == (f"out/{name}" in launch.written)


def test_an_addition_loads_each_operand_once_and_reads_the_second_as_a_second_kernel_row() -> None:
    graph = GRAPHS["residual"](2)
    program = graph.program(build(8, 8, 4096, 512))
    at = next(at for at, layer in enumerate(program.layers) if layer.operator == "add")
    layer = program.layers[at]
    channels, height, width = layer.out_shape
    (launch,) = launches(program, batch=1)
    found = [
        (job, record)
        for job, record in zip(launch.units[0].jobs, launch.units[0].descriptors, strict=True)
        if job.layer == at
    ]
    (_, load), (job, record) = found
    groups = -(-channels // 8)
    assert load["flags"] & ~np.uint32(Flag.FENCE) == Flag.LOAD | Flag.LOAD_ONLY
    assert record["flags"] & Flag.LOAD
    assert not record["flags"] & Flag.LOAD_ONLY
    assert (job.first_group, job.groups) == (0, groups)
    assert {int(r["load_words"]) for r in (load, record)} == {groups * height * width}
    assert (record["kernel_h"], record["in_h"]) == (2, height + 1)
    assert record["src_tap"] == groups * height * width
    assert record["steps"] == 2 * record["groups_in"] == 2
    assert (record["src_period"], record["src_step"]) == (1, height * width if groups > 1 else 0)


def test_output_groups_of_a_regular_grouped_layer_are_one_job_and_irregular_ones_several_or_read_copies() -> None:
    def jobs(array: tuple[int, int], channels: int, groups: int, outputs: int) -> list[tuple[int, int]]:
        graph = Graph(1, (channels, 6, 6))
        name = graph.layer((INPUT,), outputs, 3, groups=groups, padding=1)
        program = graph.program(build(*array, 1024, 512))
        (launch,) = launches(program)
        x = images(program, 2, 0)
        plan = SoftErrors(1e-2, per="mac").draw(program, 0, 2, 1)
        wanted, found = (
            Runtime(program, device).forward(x, plan=plan).out[name]
            for device in (ReferenceDevice(program.config), Executor(program.config))
        )
        assert np.array_equal(found, wanted)
        return [(job.first_group, job.groups) for job in launch.units[0].jobs if job.first == 0 and job.groups]

    assert jobs((4, 4), 32, 32, 32) == [(0, 8)]
    assert jobs((4, 4), 24, 3, 24) == [(0, 6)]
    assert jobs((4, 4), 20, 5, 25) == [(0, 3), (3, 2), (5, 2)]
    # With fewer lanes than a word has channels, a job cannot begin in the middle of a word.
    assert jobs((2, 8), 35, 5, 10) == [(0, 8)]


def test_kernels_beyond_the_ring_are_streamed_once_an_output() -> None:
    graph = Graph(3, (9, 7, 6))
    name = graph.layer((INPUT,), 10, 3, padding=1)
    program = graph.program(build(4, 4, 512, 16))
    found = records(program)
    assert (found["flags"] & Flag.STREAM).all()
    assert (found["weight_passes"] == 42).all()
    x = images(program, 2, 0)
    wanted, out = (
        Runtime(program, device).forward(x).out[name]
        for device in (ReferenceDevice(program.config), Executor(program.config))
    )
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_executor_notices_a_missing_fence_in_a_graph(name: str) -> None:
    program = GRAPHS[name](1).program(build(4, 4, 512))
    x = images(program, 3, 0)
    launch = schedule(program, range(len(program.layers)), 3, writeback=False)
    fences = np.flatnonzero(launch.units[0].descriptors["flags"] & Flag.FENCE)
    assert len(fences)

    for at in fences:

        class Forgetful(Executor):
            def launch(self, launch: Launch, at: int = int(at)) -> LaunchReport:
                (unit,) = launch.units
                copied = unit.descriptors.view(np.uint8).copy().view(unit.descriptors.dtype)
                copied["flags"][at] &= ~np.uint32(Flag.FENCE)
                return super().launch(replace(launch, units=[replace(unit, descriptors=copied)]))

        with pytest.raises(Hazard, match="races the job before|may not be written yet"):
            Runtime(program, Forgetful(program.config)).forward(x, writeback=False)


def test_what_the_accelerator_does_not_compute_is_refused_with_the_cpu_as_remedy() -> None:
    graph = Graph(0, (6, 5, 5))
    graph.layer((INPUT,), 6, groups=6, operator="lrn")
    with pytest.raises(CompileError, match="local response normalisation.*run it on the CPU") as refused:
        graph.program(build(4, 4, 512))
    assert refused.value.where == "accelerator"
    graph = Graph(0, (6, 5, 5))
    graph.layer((INPUT,), 8, groups=4)
    with pytest.raises(CompileError, match="6 input channels and 8 output channels do not make 4 groups"):
        graph.program(build(4, 4, 512))
    graph = Graph(0, (6, 30, 30))
    graph.layer((INPUT,), 6, 12, groups=6, operator="average", ones=True)
    assert graph.program(build(4, 4, 2048))
