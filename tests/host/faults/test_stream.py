"""Plans drawn range by range: the same flips for any split, in the memory of one range."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import Fault, SoftErrors
from host.faults.plan import FaultPlan, PlanError, extents
from host.models import caffe_lenet, lenet5
from host.program.program import Program
from host.schedule.launch import schedule
from hw.config import Config


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(), calibrate=torch.rand(4, 1, 28, 28))


MODELS = [SoftErrors(1e-3), SoftErrors(1e-4, per="mac"), SoftErrors(1e-4) + SoftErrors(1e-5, per="mac")]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_any_batch_meets_the_flips_of_the_whole_plan(model: Fault, batch: int, program: Program) -> None:
    whole = model.draw(program, 0, 23, 7)
    parts = list(model.stream(program, 7).batches(23, batch))
    assert [first for first, _ in parts] == list(range(0, 23, batch))
    for first, part in parts:
        assert len(part) > 0
        assert part == whole.images(first, min(batch, 23 - first))


def test_a_forward_pass_under_a_stream_gives_the_bytes_of_the_plan(program: Program) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (6, 1, 28, 28)).astype(np.int8)
    model = MODELS[2]
    whole = Runtime(program, ReferenceDevice()).forward(x, plan=model.draw(program, 3, 6, 9), first_image=3)
    # Memory for about two images: the runtime halves the batch, and asks for the faults of each part.
    enough = schedule(program, range(len(program.layers)), 2, writeback=True).end + 4096
    small = Runtime(program, ReferenceDevice(memory_bytes=enough))
    streamed = small.forward(x, plan=model.stream(program, 9), first_image=3)
    assert small._largest is not None
    assert small._largest < 6
    clean = small.forward(x)
    assert np.array_equal(whole.out["fc3"], streamed.out["fc3"])
    assert not np.array_equal(whole.out["fc3"], clean.out["fc3"])


def test_a_stream_takes_the_memory_of_one_batch(program: Program) -> None:
    stream = SoftErrors(0.02, per="mac").stream(program, 1)

    def peak(images: int, batch: int) -> tuple[int, int]:
        tracemalloc.start()
        events = 0
        for _, part in stream.batches(images, batch):
            events += len(part)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return events, most

    few, one_batch = peak(8, 8)
    many, all_batches = peak(160, 8)
    assert many > 15 * few
    assert all_batches < 1.5 * one_batch


@pytest.mark.slow
def test_a_plan_of_1e8_flips_is_drawn_in_the_memory_of_a_batch(program: Program) -> None:
    rate, batch = 0.25, 64
    stream = SoftErrors(rate, per="mac").stream(program, 2)
    places = sum(int(np.prod(extents(program, at, "mac"))) for at in range(len(program.layers)))
    images = int(1e8 / (rate * places)) + 1
    events, most = 0, 0
    for _, part in stream.batches(images, batch):
        events += len(part)
        most = max(most, len(part))
    assert events > 0.99e8
    assert stats.binomtest(events, places * images, rate).pvalue > 1e-3
    assert most < 1.1 * batch * places * rate


def test_a_stream_is_refused_by_another_network(program: Program) -> None:
    other = compile_network(caffe_lenet(), Config(), calibrate=torch.rand(2, 1, 28, 28))
    with pytest.raises(PlanError, match="drawn for layers conv1, conv2, fc1, fc2, fc3; this network has conv1, conv2"):
        Runtime(other, ReferenceDevice()).forward(
            np.zeros((1, 1, 28, 28), np.int8), plan=SoftErrors(1e-3).stream(program, 1)
        )


def test_flipping_twice_restores(program: Program) -> None:
    plan = SoftErrors(1e-3).draw(program, 0, 3, 5)
    x = np.random.default_rng(1).integers(-128, 128, (3, 1, 28, 28)).astype(np.int8)
    runtime = Runtime(program, ReferenceDevice())
    clean = runtime.forward(x)
    twice = runtime.forward(x, plan=FaultPlan.of(program.names) + plan + plan)
    assert all(np.array_equal(clean.out[name], twice.out[name]) for name in program.names)
    assert not np.array_equal(runtime.forward(x, plan=plan).out["fc3"], clean.out["fc3"])


def test_a_weight_that_was_flipped_by_hand_is_restored_by_the_devices_flip(program: Program) -> None:
    """Nothing cancels in the plan here: one flip is in the tensor, the other is the device's."""
    plan = SoftErrors(1e-3, sites=("weight",)).draw(program, 0, 3, 5)
    hurt = program.with_placement([])
    for layer, output, bit in zip(plan.layer, plan.output, plan.bit, strict=True):
        weight = hurt.weights[program.names[layer]].copy()
        weight.reshape(-1).view(np.uint8)[output] ^= np.uint8(1 << bit)
        hurt.weights[program.names[layer]] = weight
    x = np.random.default_rng(1).integers(-128, 128, (3, 1, 28, 28)).astype(np.int8)
    clean = Runtime(program, ReferenceDevice()).forward(x)
    runtime = Runtime(hurt, ReferenceDevice())
    once, twice = runtime.forward(x), runtime.forward(x, plan=plan)
    assert not np.array_equal(once.out["fc3"], clean.out["fc3"])
    assert all(np.array_equal(clean.out[name], twice.out[name]) for name in program.names)


@pytest.mark.parametrize(("rate", "site"), [(1e-3, "weight"), (3e-4, "input"), (2e-3, "feature"), (1e-4, "mac")])
def test_the_empirical_error_rate_lies_in_its_interval(rate: float, site: str, program: Program) -> None:
    per = "mac" if site == "mac" else "bit"
    plan = SoftErrors(rate, per, (site,)).draw(program, 0, 40, 3)
    places = (1 if site == "mac" else 8) * sum(
        int(np.prod(extents(program, at, site))) for at in range(len(program.layers))
    )
    exposed = places if site == "weight" else 40 * places
    interval = stats.binomtest(len(plan), exposed).proportion_ci(0.999, method="wilson")
    assert interval.low <= rate <= interval.high
