"""ResNet-18 and ResNet-50: residual blocks, plain and with a bottleneck."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.initialise import initialise
from host.models.weights import with_weights


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """A projection where the block changes the tensor's shape; else the block adds its input as it is."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the stride is in the 3x3 one (torchvision's, "v1.5")."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet (He et al. 2015): 11,689,512 parameters (18), 25,557,032 (50).

    Input float, shape (N, 3, 224, 224), normalised (`host.datasets.imagenet`); output logits, shape (N, classes).
    """

    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: tuple[int, int, int, int], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        channels = 64
        for number, depth in enumerate(depths):
            width = 64 << number
            blocks = []
            for place in range(depth):
                blocks.append(block(channels, width, 2 if number and not place else 1))
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(*, classes: int = 1000, pretrained: bool | str | Path = False) -> ResNet:
    """A ResNet-18; `pretrained` is a file with torchvision's keys (`load_weights`) or False for random weights."""
    return with_weights(ResNet(Basic, (2, 2, 2, 2), classes), "resnet18", pretrained)


def resnet50(*, classes: int = 1000, pretrained: bool | str | Path = False) -> ResNet:
    """A ResNet-50; `pretrained` as for `resnet18`."""
    return with_weights(ResNet(Bottleneck, (3, 4, 6, 3), classes), "resnet50", pretrained)
