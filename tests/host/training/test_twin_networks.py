"""Twins of networks that are more than their modules' parameters: modes, hooks, parametrisations, later changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.training.twin import Twin, attach
from hw.config import Config

CONFIG = Config(lanes=4, vec=4)
X = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(1))


def twin_of(net: nn.Module) -> Twin:
    return attach(net, ReferenceDevice(CONFIG), calibrate=X)


def close(twin: Twin, net: nn.Module) -> None:
    """Signal to quantisation noise of at least 20 dB."""
    with torch.no_grad():
        wanted, found = net.eval()(X), twin.eval()(X)
    assert float(((found - wanted) ** 2).sum()) < 0.01 * float((wanted**2).sum())


class Block(nn.Module):
    """A residual block that does something else in training; the batch norm is called by keyword."""

    def __init__(self, choose: Callable[[Block, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.05, 0.2)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        self.choose = choose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self, x) if self.training else F.relu(x + self.norm(input=self.conv(input=x)))


BLOCKS: list[Callable[[Block, torch.Tensor], torch.Tensor]] = [
    lambda block, x: x,
    lambda block, x: block.conv(x),
    lambda block, x: F.relu(x + F.dropout(block.conv(x), 0.5)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choose", BLOCKS)
def test_what_is_computed_is_what_evaluation_mode_computes(
    choose: Callable[[Block, torch.Tensor], torch.Tensor], training: bool
) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Block(choose), nn.Flatten(), nn.Linear(256, 3)).train(training)
    twin = twin_of(net)
    assert net.training is training
    compiled = compile_network(net, CONFIG, calibrate=X)
    assert twin.program.digest == compiled.digest
    twin.refresh()
    assert twin.program.digest == compiled.digest
    twin.train()(X).sum().backward()
    assert net[1].norm.weight.grad is not None
    close(twin, net)
