"""Random weights that keep a deep network's signal alive."""

from __future__ import annotations

from torch import nn


def initialise(net: nn.Module) -> None:
    """He et al. 2015 (fan-out) for convolutions, N(0, 0.01) for linear layers, biases zero; in place."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
