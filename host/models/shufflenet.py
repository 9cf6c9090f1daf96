"""ShuffleNetV2: half of the channels pass each block untouched, then all are shuffled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.initialise import initialise
from host.models.weights import with_weights

STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels and blocks of stages 2 to 4 at width 1.0 (the paper's table 5)."""


def _pointwise(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    """A block: at stride 1 the second half of the channels is computed, at stride 2 two branches see all of them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        self.splits = stride == 1
        # torchvision has an empty branch1 in blocks that split; it has no keys, and the graph is shorter without it.
        if not self.splits:
            self.branch1 = nn.Sequential(*_depthwise(channels, stride), *_pointwise(channels, half))
        self.branch2 = nn.Sequential(
            *_pointwise(half if self.splits else channels, half), *_depthwise(half, stride), *_pointwise(half, half)
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.splits:
            left, right = x.chunk(2, dim=1)
        else:
            left, right = self.branch1(x), x
        return self.shuffle(torch.cat((left, self.branch2(right)), dim=1))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 (Ma et al. 2018), width 1.0: 2,278,604 parameters.

    Input float, shape (N, 3, 224, 224), normalised (`host.datasets.imagenet`); output logits, shape (N, classes).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 24, 3, 2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        channels = 24
        for out, blocks in STAGES:
            rest = [Unit(out, out, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(Unit(channels, out, 2), *rest))
            channels = out
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*_pointwise(channels, 1024))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def shufflenet_v2_x1_0(*, classes: int = 1000, pretrained: bool | str | Path = False) -> ShuffleNetV2:
    """A ShuffleNetV2 x1.0; `pretrained` is a file with torchvision's keys (`load_weights`) or False for random."""
    return with_weights(ShuffleNetV2(classes), "shufflenet_v2_x1_0", pretrained)
