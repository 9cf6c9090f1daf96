"""Ways in which a module's weight is computed from other tensors, old and new."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Standardised(nn.Module):
    """A user's own parametrisation: weights of mean 0 and variance 1 / fan-in, as weight standardisation has them."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        flat = weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (
            (flat.std(1, correction=0, keepdim=True) + 0.1) * flat.shape[1] ** 0.5
        )
        return flat.reshape(weight.shape)


class InTrainingOnly(nn.Module):
    """A parametrisation that is another one in training, like DropConnect."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(weight) if self.training else 0.5 * weight


def as_buffer(module: nn.Module) -> None:
    weight = module.weight.detach().clone()
    del module.weight
    module.register_buffer("weight", weight)


def pruned_twice(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)
    prune.random_unstructured(module, "bias", 0.5)
    prune.ln_structured(module, "weight", 0.25, n=2, dim=0)


def spectral_norm(module: nn.Module) -> None:
    nn.utils.spectral_norm(module, n_power_iterations=15)
    for hook in module._forward_pre_hooks.values():
        hook(module, ())  # as a step of training does; before, the norm is that of random vectors


def warnings_aside(how: Callable[..., object]) -> Callable[[nn.Module], None]:
    def apply(module: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old forms are deprecated, and still everywhere
            how(module)

    return apply


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight norm, old": warnings_aside(nn.utils.weight_norm),
    "weight norm, old, other dimension": warnings_aside(lambda module: nn.utils.weight_norm(module, dim=None)),
    "weight norm": parametrizations.weight_norm,
    "spectral norm, old": warnings_aside(spectral_norm),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "pruned several times": pruned_twice,
    "pruned by hand": lambda module: prune.custom_from_mask(module, "weight", (module.weight > 0).float()),
    "own parametrisation": lambda module: parametrize.register_parametrization(module, "weight", Standardised()),
    "parametrised bias": lambda module: parametrize.register_parametrization(module, "bias", InTrainingOnly()),
    "other in training": lambda module: parametrize.register_parametrization(module, "weight", InTrainingOnly()),
    "a buffer": as_buffer,
    "frozen": lambda module: module.requires_grad_(False),
}
