"""The quick look whether a network is still the same sees every change that its marks show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from host.compiler.network import Snapshot, marks


class Holder(nn.Module):
    """Attributes of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.sizes = [1, 2]
        self.named = {"a": 1}
        self.tensor = torch.zeros(2)
        self.act: Callable[..., Any] = torch.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


class Other(nn.Conv2d):
    """Another class."""


def reclass(net: Holder) -> None:
    net.conv.__class__ = Other


CHANGES: dict[str, Callable[[Holder], Any]] = {
    "stride": lambda net: setattr(net.conv, "stride", (2, 2)),
    "list in place": lambda net: net.sizes.append(3),
    "list element": lambda net: net.sizes.__setitem__(0, 9),
    "dict in place": lambda net: net.named.update(b=2),
    "function": lambda net: setattr(net, "act", torch.tanh),
    "new attribute": lambda net: setattr(net, "fresh", 1),
    "gone attribute": lambda net: delattr(net, "act"),
    "child replaced": lambda net: setattr(net, "conv", nn.Conv2d(1, 4, 3)),
    "child added": lambda net: setattr(net, "more", nn.ReLU()),
    "class": reclass,
    "own forward": lambda net: setattr(net.conv, "forward", lambda x: x),
    "hook": lambda net: net.norm.register_forward_hook(lambda *_: None),
    "pre-hook": lambda net: net.conv.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda net: net.conv.register_full_backward_hook(lambda *_: None),
    "eps": lambda net: setattr(net.norm, "eps", 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str) -> None:
    net = Holder()
    before, snapshot = marks(net), Snapshot(net)
    assert snapshot.holds()
    CHANGES[name](net)
    assert marks(net) != before
    assert not snapshot.holds()


def test_what_is_read_anew_at_each_pass_is_no_change() -> None:
    net = Holder()
    snapshot = Snapshot(net)
    net.eval()
    net.conv.weight = nn.Parameter(torch.ones(4, 1, 3, 3))
    net.norm.running_mean = torch.ones(4)
    net.conv.bias = None
    assert snapshot.holds()


@pytest.mark.parametrize("value", [[[1]], {"a": [1]}, ({"b": 2},)], ids=str)
def test_what_may_change_deep_inside_is_left_to_the_marks(value: Any) -> None:
    net = Holder()
    net.deep = value
    assert not Snapshot(net).holds()


def test_another_tensor_as_an_attribute_is_left_to_the_marks() -> None:
    net = Holder()
    snapshot = Snapshot(net)
    net.tensor = torch.zeros(2)
    assert not snapshot.holds()
