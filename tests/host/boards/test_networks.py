"""What the boards' accelerators are for: LeNet-5 fits on each that has a bitstream, in its memory and its few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import redline
from host.boards import table
from host.devices.runtime import Runtime
from host.models import lenet5
from host.program.program import Program
from hw.boards.board import BoardError
from hw.boards.catalogue import BOARDS
from tests.host.executor import Executor

FITTING = [name for name, entry in table.load().items() if entry["fits"]]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_there_are_boards_with_a_bitstream() -> None:
    assert {"ulx3s-85f", "ulx3s-25f", "orangecrab"} <= set(FITTING)


@pytest.mark.parametrize("name", FITTING)
def test_lenet_runs_in_a_boards_memory_with_write_back_for_training(name: str, images: torch.Tensor) -> None:
    """A few images a launch, or one."""
    board = BOARDS[name]
    torch.manual_seed(0)
    program: Program = redline.compile(lenet5(), board.config, calibrate=images)
    x = program.quantise_input(images)
    device = Executor(board.config)
    device.memory_bytes = board.memory_bytes
    found = Runtime(program, device).forward(x, writeback=True).out
    with redline.device("reference", board=name) as reference:
        assert reference.config == board.config
        wanted = Runtime(program, reference).forward(x, writeback=True).out
    assert found.keys() == wanted.keys() == set(program.names)
    assert all(np.array_equal(found[layer], wanted[layer]) for layer in wanted)


def test_a_device_is_of_a_boards_build_and_of_what_is_given_beside_it() -> None:
    config = BOARDS["ulx3s-25f"].config
    with redline.device("reference", board="ulx3s-25f", lanes=8, memory_bytes=1 << 20) as device:
        assert (device.config.lanes, device.config.vec, device.config.count_bits) == (8, config.vec, config.count_bits)
        assert device.memory_bytes == 1 << 20
    with pytest.raises(BoardError, match="no board is called 'ulx4s'; there are: ulx3s-85f"):
        redline.device("reference", board="ulx4s")
