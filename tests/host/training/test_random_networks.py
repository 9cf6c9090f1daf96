"""Random modules: their twins on the emulator are near the float network, with the rule's gradients, or are refused."""

from __future__ import annotations

import random

import pytest
import torch

from host.devices.device import Device
from host.devices.emulator.device import EmulatorDevice
from host.training.twin import attach
from hw.config import Config
from hw.errors import RedlineError
from tests.host import random_networks, straight_through

CONFIGS = (Config(lanes=4, vec=4), Config(lanes=16, vec=8))


def tried(seed: int, device: Device) -> bool:
    """Whether the random network of a seed compiled; raises where it is wrong."""
    made, generator = random_networks.make(seed), random.Random(seed)
    if generator.random() < 0.4:
        with torch.set_grad_enabled(generator.random() < 0.5):
            made.net(made.images)  # the usual validation before attaching
    per_channel = generator.random() < 0.5
    before = generator.random() < 0.5
    try:
        net = made.net.to(made.dtype) if before else made.net
        twin = attach(net, device, calibrate=made.images, per_channel=per_channel, fallback="cpu")
        net.to(made.dtype)
    except RedlineError:
        if not made.refusable:
            raise
        return False
    straight_through.check(twin, made.images)
    return True


@pytest.mark.parametrize("part", range(4))
def test_random_networks_are_right_or_refused(part: int) -> None:
    device = EmulatorDevice(CONFIGS[part % 2])
    assert sum(tried(seed, device) for seed in range(12 * part, 12 * part + 12)) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("part", range(10))
def test_five_hundred_random_networks_are_right_or_refused(part: int, seed: int) -> None:
    device = EmulatorDevice(CONFIGS[part % 2])
    first = seed * 1_000_000 + 50 * part
    assert sum(tried(at, device) for at in range(first, first + 50)) >= 25
