"""Whole images at full size through the RTL: the reference's bytes, and the cycles that the model predicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from host import models
from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import schedule
from hw.config import Config

CONFIG = Config(port_bits=512, feature_bytes=1 << 19, weight_bytes=1 << 19, pool_columns=128)
"""16x8 with 64 bytes a cycle: the array that `redline bench hardware` measures."""
MEMORY = Memory(100, 64)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet5": (models.lenet5, (1, 28, 28)),
    "squeezenet1_1": (models.squeezenet1_1, (3, 224, 224)),
    "alexnet": (models.alexnet, (3, 224, 224)),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("writeback", [False, True], ids=["chained", "write-back"])
@pytest.mark.parametrize("network", NETWORKS)
def test_one_image_is_exact_and_takes_the_predicted_cycles(network: str, writeback: bool) -> None:
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    images = torch.randn(2, *shape)
    program = compile_network(make().eval(), CONFIG, calibrate=images)
    x = program.quantise_input(images[:1])
    size = 1 << 29
    wanted = Runtime(program, ReferenceDevice(CONFIG, memory_bytes=size)).forward(x, writeback=writeback)
    with SimulationDevice(CONFIG, processes=1, memory_bytes=size, latency=100, launch_timeout_s=60) as device:
        found = Runtime(program, device).forward(x, writeback=writeback)
    last = program.names[-1]
    for name in program.names if writeback else [last]:
        assert np.array_equal(found.out[name], wanted.out[name]), name
    assert np.unique(found.out[last]).size > 3
    segments = [at for placement, at in program.segments() if placement == "accelerator"]
    launches = [schedule(program, at, 1, writeback=writeback, memory_bytes=size) for at in segments]
    assert sum(estimate(launch, MEMORY).cycles for launch in launches) == pytest.approx(found.report.cycles, rel=0.02)
