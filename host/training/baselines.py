"""Robust training without the accelerator: what retraining in the loop is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from host.datasets.given import Given
from host.training.train import Progress, Recipe

Disturbance = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Changes a layer's outputs, shape (N, ...), during training."""


def gaussian_noise(share: float) -> Disturbance:
    """Adds Gaussian noise whose standard deviation is `share` of the layer's own (train-with-noise)."""

    def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        return x + noise * (share * x.detach().std())

    return disturb


def dropout(share: float) -> Disturbance:
    """Zeroes outputs with probability `share` and scales the rest up (train-with-dropout; Srivastava et al. 2014)."""
    if not 0 <= share < 1:
        raise ValueError(f"a share to drop is from 0 to below 1, not {share}")

    def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        kept = (torch.rand(x.shape, generator=generator, dtype=torch.float32) >= share).to(x.device)
        return x * kept / (1 - share)

    return disturb


@contextmanager
def disturbed(net: nn.Module, disturb: Disturbance, seed: int) -> Iterator[None]:
    """Context in which every convolution's and linear layer's output is disturbed, but for the last layer's.

    The last layer's outputs are the classes' scores: dropping those is dropping the answer.
    """
    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    generator = torch.Generator().manual_seed(seed)

    def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return disturb(output, generator)

    handles = [layer.register_forward_hook(hook) for layer in layers[:-1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def retrain_disturbed(
    net: nn.Module, dataset: Any, recipe: Recipe, disturb: Disturbance, *, progress: Progress | None = None
) -> None:
    """Retrain a float network in place with the recipe of `retrain`, its layers' outputs disturbed.

    Parameters
    ----------
    net : nn.Module
    dataset : Labelled, torch Dataset or DataLoader, or (images, labels)
    recipe : Recipe
        Images, order and steps are those that `retrain` would take.
    disturb : Disturbance
    """
    optimiser = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    given = Given(dataset)
    size = given.random_access()
    training = net.training
    net.train()
    try:
        with disturbed(net, disturb, recipe.seed):
            for step in range(recipe.steps):
                x, y = given.batch(recipe.order(step, size))
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate(step)
                loss = F.cross_entropy(net(x), y)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
                optimiser.step()
                if progress is not None:
                    progress((step + 1) * recipe.batch, recipe.steps * recipe.batch, f"loss {float(loss.detach()):.3f}")
    finally:
        net.train(training)
