"""A layer's float weights as functions of the network's live parameters, as evaluation mode makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from host.compiler.limits import CompileError

PARAMETRISING = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Forward pre-hooks that compute a module's tensors from others of its own, and do nothing else."""


@dataclass(frozen=True)
class Origin:
    """Where the network has a layer's weights.

    Attributes
    ----------
    module : str
        Qualified name of the convolution or linear module; "" is the network itself.
    norm : str, optional
        That of the batch norm after it, which is folded into it.
    """

    module: str
    norm: str | None = None

    def read(self, net: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight, shape as the module has it, and bias, shape (M,), differentiable, whatever mode `net` is in.

        In float32, where the network has half precision: folding would round once more.

        What the module computes its weight from (`parametrize`, `prune`, weight or spectral norm) is computed anew; a
        batch norm is folded from its running statistics. Nothing in `net` changes.

        Raises
        ------
        CompileError
            If the batch norm has no running statistics.
        """
        weight, bias = map(_single, tensors(submodule(net, self.module), "weight", "bias"))
        assert weight is not None
        if self.norm is None:
            return weight, bias
        bn = submodule(net, self.norm)
        gamma, beta, mean, variance = map(_single, tensors(bn, "weight", "bias", "running_mean", "running_var"))
        if mean is None or variance is None:
            raise CompileError(
                f"{self.norm} ({type(bn).__name__})",
                "it has no running statistics: in evaluation it normalises each batch by its own",
                "use track_running_stats=True and train the network with it, or leave it out",
            )
        assert isinstance(bn, nn.modules.batchnorm._BatchNorm)
        scale = torch.rsqrt(variance + bn.eps)
        scale = scale if gamma is None else gamma * scale
        shifted = (-mean if bias is None else bias - mean) * scale
        folded = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        return folded, shifted if beta is None else shifted + beta


def submodule(net: nn.Module, name: str) -> nn.Module:
    """A module by its qualified name; "" is the network itself."""
    found = net
    for part in name.split(".") if name else ():
        child = found._modules[part]
        assert child is not None
        found = child
    return found


def _single(x: torch.Tensor | None) -> torch.Tensor | None:
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def tensors(module: nn.Module, *names: str) -> tuple[torch.Tensor | None, ...]:
    """Tensors of a module as its next evaluation would find them: parametrisations and their hooks applied."""
    hooks: list[Any] = []
    if module._forward_pre_hooks:
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, PARAMETRISING)]
    if not hooks and "parametrizations" not in module._modules:
        own = module._parameters  # what getattr finds there, but sooner: this is asked before each forward pass
        return tuple(own[name] if name in own else getattr(module, name) for name in names)
    shadow = _shadow(module)
    for hook in hooks:
        hook(shadow, ())
    lists: Any = shadow._modules.get("parametrizations") or {}
    # Called by itself: `parametrize.cached` would know the shadow by its address only.
    return tuple(lists[name]() if name in lists else getattr(shadow, name) for name in names)


def _shadow(module: nn.Module) -> nn.Module:
    """A module in evaluation mode with the same parameters, in which attributes can be set."""
    shadow = type(module).__new__(type(module))
    shadow.__dict__.update(module.__dict__)
    shadow.__dict__["_parameters"] = dict(module._parameters)
    shadow.__dict__["_buffers"] = dict(module._buffers)
    shadow.__dict__["_modules"] = {
        name: child if child is None else _shadow(child) for name, child in module._modules.items()
    }
    shadow.__dict__["training"] = False
    return shadow
