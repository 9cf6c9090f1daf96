"""The bytes that descriptors ask for are those that the RTL counts at its memory port."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.models import lenet5
from host.schedule.launch import schedule
from host.schedule.traffic import job_traffic, layer_traffic, moved_bytes
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import run_case
from hw import descriptor
from hw.config import Config
from hw.descriptor import Flag


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


def record(**fields: int) -> np.void:
    """A descriptor with these fields, zero elsewhere."""
    one = np.zeros(1, descriptor.DTYPE)
    for name, value in fields.items():
        one[name] = value
    return one[0]


@pytest.mark.parametrize(
    ("address", "words", "segments", "stride", "beats"),
    [
        (0, 4, 1, 0, 2),  # words of 4 bytes, beats of 8
        (4, 4, 1, 0, 3),  # from the middle of a beat to the middle of another
        (4, 1, 1, 0, 1),
        (0, 3, 2, 16, 4),
        (4, 3, 2, 12, 2 + 2),  # 4 to 16, and 16 to 28
        (0, 2, 3, 12, 1 + 2 + 1),  # only the second begins within a beat
    ],
)
def test_segments_that_begin_within_a_beat_take_the_whole_beat(
    address: int, words: int, segments: int, stride: int, beats: int
) -> None:
    config = Config(lanes=4, vec=4, port_bits=64)
    job = record(
        flags=int(Flag.LOAD | Flag.LOAD_ONLY), load_addr=address, load_words=words, load_segments=segments,
        load_stride=stride,
    )  # fmt: skip
    own = -(-descriptor.USED_BYTES // 8) * 8
    assert job_traffic(config, job) == (own + 8 * beats, 0)
