"""The cycle model against the counters of the RTL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from host.bench.cycles import MEMORIES, errors
from host.compiler.compile import compile as compile_network
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.models import lenet5
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import schedule
from host.schedule.traffic import moved_bytes
from host.verification.cases import CONFIGS, random_case
from host.verification.overclocked import OVERCLOCKED
from host.verification.verify import run_case
from hw.config import Config


@pytest.mark.parametrize("memory", [Memory(), Memory(100), Memory(100, 4.0)], ids=str)
@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[3]], ids=["8x8", "16x8"])
def test_lenets_cycles_are_predicted_within_two_percent(config: Config, memory: Memory) -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 1, 28, 28)
    program = compile_network(lenet5(), config, calibrate=images)
    with SimulationDevice(
        config,
        processes=1,
        memory_bytes=1 << 24,
        latency=memory.latency,
        bytes_per_cycle=memory.bytes_per_cycle,
    ) as device:
        for batch, writeback in ((1, False), (16, True)):
            outputs = Runtime(program, device).forward(program.quantise_input(images[:batch]), writeback=writeback)
            predicted = estimate(schedule(program, range(5), batch, writeback=writeback), memory)
            assert predicted.cycles == pytest.approx(outputs.report.cycles, rel=0.02)
            assert sum(job.ideal for job in predicted.jobs) == outputs.report.mac_cycles


@pytest.mark.parametrize("memory", MEMORIES[:3], ids=str)
@pytest.mark.parametrize(
    "config",
    [CONFIGS[0], CONFIGS[3], CONFIGS[5], OVERCLOCKED[0]],
    ids=["output by output", "16x8", "tiled", "with late bits"],
)
def test_random_launches_cycles_are_predicted_within_two_percent(config: Config, memory: Memory) -> None:
    for predicted, counted in errors(config, memory, 9, range(6)):
        assert predicted == pytest.approx(counted, rel=0.02)


def test_weights_that_wait_for_the_features_of_their_own_job_are_predicted_exactly() -> None:
    # The weight loader takes the second job while it still asks for the first one's weights: these then go after
    # the features, although nothing begins without them.
    for predicted, counted in errors(CONFIGS[3], Memory(200), 10, range(13, 14)):
        assert predicted == counted


@pytest.mark.parametrize("memory", [MEMORIES[number] for number in (0, 4, 5, 9)], ids=str)
@pytest.mark.parametrize("config", CONFIGS[8:], ids=lambda config: f"{config.lanes}x{config.vec}")
def test_a_microprograms_cycles_are_predicted_exactly(config: Config, memory: Memory) -> None:
    assert config.control == "microcode"
    for predicted, counted in errors(config, memory, 9, range(4)):
        assert predicted == counted


def test_a_microprograms_steps_and_bytes_are_those_that_the_accelerator_counts() -> None:
    config = CONFIGS[8]
    case = replace(random_case(3, 5, configs=(config,)), plan=None, units=1)
    with SimulationDevice(config, processes=1, memory_bytes=1 << 24) as device:
        for snapshot in run_case(case, device):
            predicted, moved = estimate(snapshot.launch), moved_bytes(snapshot.launch)
            assert sum(job.ideal for job in predicted.jobs) == snapshot.report.mac_cycles > 0
            assert moved == (snapshot.report.bytes_read, snapshot.report.bytes_written)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_random_launches_cycles_are_predicted_on_every_accelerator_and_memory(number: int) -> None:
    config = CONFIGS[number]
    found = [pair for at, memory in enumerate(MEMORIES) for pair in errors(config, memory, 10, range(at, 30, 10))]
    assert len(found) >= 30
    for predicted, counted in found:
        assert predicted == pytest.approx(counted, rel=0.02)
    assert np.median([abs(predicted / counted - 1) for predicted, counted in found]) <= 0.002


def test_a_slow_memory_makes_fully_connected_layers_memory_bound_and_leaves_convolutions_compute_bound() -> None:
    program = compile_network(lenet5(), Config(), calibrate=torch.rand(4, 1, 28, 28))
    predicted = estimate(schedule(program, range(5), 1, writeback=False), Memory(100, 4.0))
    # The last layer's few weights arrive while the one before it waits.
    bounds = [predicted.layer(at)[2] for at in range(1, 4)]
    assert bounds == ["compute", "memory", "memory"]
    for at in range(5):
        cycles, ideal, _ = predicted.layer(at)
        assert cycles >= ideal
