"""AlexNet, the variant torchvision has: one tower; local response normalisation on request."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.weights import with_weights


def _relu(lrn: bool) -> nn.Module:
    """ReLU, and the normalisation after it without another key in the sequence around."""
    return nn.Sequential(nn.ReLU(), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)) if lrn else nn.ReLU()


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky 2014, "One weird trick"): 61,100,840 parameters.

    Input float, shape (N, 3, 224, 224), normalised (`host.datasets.imagenet`); output logits, shape (N, classes).

    Parameters
    ----------
    classes : int
    lrn : bool
        Normalise after the first two convolutions, as the 2012 network does, with Caffe's constants
        (`models/bvlc_alexnet`). It has no parameters: the keys stay the same.
    """

    def __init__(self, classes: int = 1000, *, lrn: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            _relu(lrn),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            _relu(lrn),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def alexnet(*, classes: int = 1000, lrn: bool = False, pretrained: bool | str | Path = False) -> AlexNet:
    """An AlexNet; `pretrained` is a file with torchvision's keys (`load_weights`) or False for random weights."""
    return with_weights(AlexNet(classes, lrn=lrn), "alexnet", pretrained)
