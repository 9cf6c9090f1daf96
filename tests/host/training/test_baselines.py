"""Training with noise and with dropout, without the accelerator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.datasets.data import Dataset
from host.training.baselines import disturbed, dropout, gaussian_noise, retrain_disturbed
from host.training.train import Recipe


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Made-up images: only that there are some matters here."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return Dataset("made", pixels, torch.randint(0, 10, (64,), generator=generator), {})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


def test_noise_has_the_wanted_share_of_the_layers_own_deviation() -> None:
    x = 3 * torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    noise = gaussian_noise(0.25)(x, torch.Generator().manual_seed(2)) - x
    assert float(noise.std() / x.std()) == pytest.approx(0.25, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(200_000)
    y = dropout(0.3)(x, torch.Generator().manual_seed(1))
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(y.mean()) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        dropout(1.0)


def test_only_the_last_layer_is_left_alone_and_no_trace_remains() -> None:
    module, x = net(), torch.randn(2, 1, 28, 28)
    clean = module(x)
    with disturbed(module, lambda y, generator: torch.zeros_like(y), seed=0):
        assert torch.equal(module(x), module[3].bias.expand(2, -1))
    assert torch.equal(module(x), clean)


def test_without_disturbance_it_is_plain_training(images: Dataset) -> None:
    """Against a training loop of its own."""
    recipe = Recipe(images=64, batch=16, lr=0.05, seed=3)
    ours, plain = net(), net()
    retrain_disturbed(ours, images, recipe, lambda y, generator: y)
    optimiser = torch.optim.SGD(plain.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    for step in range(4):
        x, y = images.batch(recipe.order(step, len(images)))
        optimiser.param_groups[0]["lr"] = recipe.rate(step)
        optimiser.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), recipe.clip)
        optimiser.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_same_seed_trains_the_same_network_and_noise_changes_it(images: Dataset) -> None:
    recipe = Recipe(images=32, batch=16, seed=3)
    nets = [net() for _ in range(3)]
    for module, share in zip(nets, (0.2, 0.2, 0.0), strict=True):
        retrain_disturbed(module, images, recipe, gaussian_noise(share))
    first, again, clean = (copy.deepcopy(module.state_dict()) for module in nets)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], clean[key]) for key in first)
