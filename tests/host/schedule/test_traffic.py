"""The bytes that descriptors ask for are those that the RTL counts at its memory port."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.models import lenet5
from host.schedule.launch import schedule
from host.schedule.traffic import layer_traffic, moved_bytes
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import run_case


@pytest.mark.parametrize("batch", [1, 5])
def test_lenets_bytes_are_those_that_the_rtl_counts(batch: int) -> None:
    config = CONFIGS[3]
    torch.manual_seed(0)
    images = torch.rand(batch, 1, 28, 28)
    program = compile_network(lenet5(), config, calibrate=images)
    with SimulationDevice(config, processes=1, memory_bytes=1 << 24) as device:
        for writeback in (False, True):
            report = Runtime(program, device).forward(program.quantise_input(images), writeback=writeback).report
            launch = schedule(program, range(5), batch, writeback=writeback)
            assert moved_bytes(launch) == (report.bytes_read, report.bytes_written)
            assert list(layer_traffic(launch)) == [0, 1, 2, 3, 4]


def test_random_cases_move_the_bytes_that_the_rtl_counts() -> None:
    config = CONFIGS[3]
    with SimulationDevice(config, processes=1, memory_bytes=1 << 24) as device:
        for number in range(25):
            # Fault events would be read, too.
            case = replace(random_case(3, number, configs=(config,)), plan=None)
            for snapshot in run_case(case, device):
                found = snapshot.report.bytes_read, snapshot.report.bytes_written
                assert moved_bytes(snapshot.launch) == found, number
