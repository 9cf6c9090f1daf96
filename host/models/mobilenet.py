"""MobileNetV2: inverted residuals with depthwise convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.initialise import initialise
from host.models.weights import with_weights

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and the first block's stride (the paper's table 2)."""


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each channel (3x3), narrow (1x1, no activation); adds its input where shapes allow."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.adds = stride == 1 and channels == out
        self.conv = nn.Sequential(
            *([_convolution(channels, hidden, 1)] if expansion != 1 else []),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018), width 1.0: 3,504,872 parameters.

    Input float, shape (N, 3, 224, 224), normalised (`host.datasets.imagenet`); output logits, shape (N, classes).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
        channels = 32
        for expansion, out, blocks, stride in STAGES:
            for place in range(blocks):
                features.append(InvertedResidual(channels, out, 1 if place else stride, expansion))
                channels = out
        features.append(_convolution(channels, 1280, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(*, classes: int = 1000, pretrained: bool | str | Path = False) -> MobileNetV2:
    """A MobileNetV2; `pretrained` is a file with torchvision's keys (`load_weights`) or False for random weights."""
    return with_weights(MobileNetV2(classes), "mobilenet_v2", pretrained)
