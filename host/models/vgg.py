"""VGG-16 and VGG-19: plain chains of 3x3 convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.initialise import initialise
from host.models.weights import with_weights

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks; a max pooling ends each."""
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each block, by layers with weights."""


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2014), without batch norm: 138,357,544 parameters (16), 143,667,240 (19).

    Input float, shape (N, 3, 224, 224), normalised (`host.datasets.imagenet`); output logits, shape (N, classes).
    """

    def __init__(self, layers: int, classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for width, depth in zip(WIDTHS, DEPTHS[layers], strict=True):
            for _ in range(depth):
                features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            features.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg16(*, classes: int = 1000, pretrained: bool | str | Path = False) -> VGG:
    """A VGG-16; `pretrained` is a file with torchvision's keys (`load_weights`) or False for random weights."""
    return with_weights(VGG(16, classes), "vgg16", pretrained)


def vgg19(*, classes: int = 1000, pretrained: bool | str | Path = False) -> VGG:
    """A VGG-19; `pretrained` as for `vgg16`."""
    return with_weights(VGG(19, classes), "vgg19", pretrained)
