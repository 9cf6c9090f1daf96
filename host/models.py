"""Networks that come with Redline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

PRETRAINED = Path(__file__).parent / "pretrained"


class ModelError(RuntimeError):
    """A network's weights are missing or do not fit; the message says why and what to do."""


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


def lenet5(*, pretrained: bool | str | Path = False) -> LeNet5:
    """A LeNet-5.

    Parameters
    ----------
    pretrained : bool or path
        True loads the weights that come with Redline (Fashion-MNIST, made by `redline pretrain`); a path loads a
        safetensors file of the same form; False leaves PyTorch's random initialisation.

    Raises
    ------
    ModelError
        If the file is missing, damaged or of another network.
    """
    net = LeNet5()
    if pretrained is not False:
        load_weights(net, pretrained_file("lenet5") if pretrained is True else Path(pretrained))
    return net


def pretrained_file(name: str) -> Path:
    """Where the weights that come with Redline lie."""
    return PRETRAINED / f"{name}-fashion-mnist.safetensors"


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a safetensors file into a network, all tensors or none."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; make it with 'redline pretrain'") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged ({error}); make it anew with 'redline pretrain'") from error
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path}: weights of another network: {error}") from error


def metadata(path: Path) -> dict[str, Any]:
    """How a weights file was made: accuracy, seed, versions, data checksums."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("redline", "{}"))


MODELS = {"lenet5": lenet5}
"""Networks by the name the command line uses."""
