"""What the boards' accelerators are for: LeNet-5 fits on all but the smallest, in its memory and its few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import redline
from host.boards import table
from host.devices.runtime import Runtime
from host.models import lenet5
from host.program.program import Program
from hw.boards.board import BoardError
from hw.boards.catalogue import BOARDS
from hw.errors import RedlineError
from tests.host.executor import Executor

FITTING = [name for name, entry in table.load().items() if entry["fits"]]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_every_board_has_a_bitstream() -> None:
    assert set(FITTING) == set(BOARDS)


def test_the_smallest_memory_holds_a_smaller_network_and_refuses_lenet(images: torch.Tensor) -> None:
    board = BOARDS["tang-nano-9k"]
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(384, 10))
    for net, fits in ((small, True), (lenet5(), False)):
        program = redline.compile(net, board.config, calibrate=images)
        device = Executor(board.config)
        device.memory_bytes = board.memory_bytes
        runtime, x = Runtime(program, device), program.quantise_input(images)
        if fits:
            with redline.device("reference", board=board.name) as reference:
                wanted = Runtime(program, reference).forward(x, writeback=True).out
            found = runtime.forward(x, writeback=True).out
            assert all(np.array_equal(found[layer], wanted[layer]) for layer in wanted)
        else:
            with pytest.raises(RedlineError, match="bytes of device memory, the device has 36864: use a smaller batch"):
                runtime.forward(x, writeback=True)


@pytest.mark.parametrize("name", [name for name in FITTING if name != "tang-nano-9k"])
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
