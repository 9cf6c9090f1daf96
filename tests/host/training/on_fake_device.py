"""Networks on another device than the CPU: all follows them there, and only what the accelerator gives crosses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.devices.device import Device
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.training.checkpoint import checkpoint_weights
from host.training.train import Recipe, evaluate, retrain
from host.training.twin import attach
from hw.config import Config
from tests.host.training.fake_device import NAME, Fake
from tests.host.training.small import Few, images, network

CONFIG = Config(lanes=4, vec=4, saboteur=True)
LABELS = torch.arange(16) % 3
FAULTS = SoftErrors(2e-3, per="mac")


class Branches(nn.Module):
    """Everything that backward has a way of its own for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1, groups=1)
        self.norm, self.local = nn.BatchNorm2d(4), nn.LocalResponseNorm(3)
        self.last = nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = F.relu(self.norm(self.a(x))), self.b(x)
        both = torch.cat([F.max_pool2d(a + b, 2), F.avg_pool2d(self.local(b), 2)], 1)
        return self.last(torch.flatten(both, 1))


def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def moved(net: nn.Module) -> nn.Module:
    """The network on the other device."""
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Fake(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Fake(buffer)
    return net


NETWORKS = {"chain": network, "branches": branches}


@pytest.mark.parametrize("gradient", ["straight_through", "clean"])
@pytest.mark.parametrize("images_on", ["cpu", NAME])
@pytest.mark.parametrize("device", [ReferenceDevice, EmulatorDevice])
@pytest.mark.parametrize("kind", NETWORKS)
def test_values_and_gradients_are_those_of_the_cpu(
    kind: str, device: type[Device], images_on: str, gradient: str
) -> None:
    found = []
    for home in ("cpu", NAME):
        net = NETWORKS[kind]()
        net = moved(net) if home == NAME else net
        made = attach(net, device(CONFIG), calibrate=images(), gradient=gradient, fallback="cpu")  # type: ignore[call-arg, arg-type]
        x = images().to(images_on if home == NAME else "cpu").requires_grad_()
        with FAULTS.on(made, seed=1):
            value = made.train()(x)
            F.cross_entropy(value, LABELS.to(home)).backward()
        assert value.device.type == made.eval()(x.detach()).device.type == home
        assert x.grad is not None
        assert x.grad.device == x.device
        every = [value.detach(), x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]
        assert {p.grad.device.type for p in net.parameters() if p.grad is not None} == {home}
        found.append([one.cpu() for one in every])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_and_checkpoints_of_a_network_elsewhere(tmp_path: Path) -> None:
    recipe, results = Recipe(images=32, batch=8), []
    for home in ("cpu", NAME):
        made = attach(moved(network()) if home == NAME else network(), ReferenceDevice(CONFIG), calibrate=images())
        retrain(made, Few(), recipe, checkpoint=tmp_path / home, every=2)
        results.append((evaluate(made, Few()).digest, checkpoint_weights(tmp_path / home)))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name])


def test_a_network_may_move_after_it_was_attached() -> None:
    made = attach(network(), ReferenceDevice(CONFIG), calibrate=images()).eval()
    before = made(images())
    moved(made.net)
    after = made(images())
    assert after.device.type == NAME
    assert torch.equal(after.cpu(), before)
