"""The smallest network, images and data set for tests of training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def network(seed: int = 0) -> nn.Sequential:
    """For images of 1x8x8, with three classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def images(count: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Few:
    """A data set by the documented protocol."""

    def __init__(self, count: int = 48, seed: int = 0) -> None:
        self.x = images(count, seed)
        self.labels = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for at in range(0, len(self), size):
            yield self.x[at : at + size], self.labels[at : at + size]
