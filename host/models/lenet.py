"""LeNet: the small network of handwritten digits, as used today and as Caffe defines it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from host.models.weights import with_weights


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998, as used today): 61,706 parameters.

    Input float, shape (N, 1, 28, 28), pixels in [0, 1]; output logits, shape (N, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = self.relu(self.fc1(x))
        x = self.relu(self.fc2(x))
        return self.fc3(x)


class CaffeLeNet(nn.Module):
    """Caffe's LeNet (`examples/mnist/lenet.prototxt`, names as there): 431,080 parameters, one ReLU.

    Input float, shape (N, 1, 28, 28), pixels in [0, 1]; output logits, shape (N, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(800, 500)
        self.ip2 = nn.Linear(500, 10)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        x = torch.flatten(x, 1)
        return self.ip2(self.relu(self.ip1(x)))


def lenet5(*, pretrained: bool | str | Path = False) -> LeNet5:
    """A LeNet-5.

    Parameters
    ----------
    pretrained : bool or path
        True loads the weights that come with Redline (Fashion-MNIST, made by `redline pretrain`); a path loads a
        file of the same keys (`load_weights`); False leaves PyTorch's random initialisation.

    Raises
    ------
    ModelError
        If the file is missing, damaged or of another network.
    """
    return with_weights(LeNet5(), "lenet5", pretrained)


def caffe_lenet(*, pretrained: bool | str | Path = False) -> CaffeLeNet:
    """Caffe's LeNet; `pretrained` is a file (`load_weights`) or False for random weights."""
    return with_weights(CaffeLeNet(), "caffe_lenet", pretrained)
