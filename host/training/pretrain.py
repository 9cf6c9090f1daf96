"""Makes the weights that come with Redline: float training, no accelerator."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from host import models
from host.datasets import data
from host.store import files


def accuracy(net: nn.Module, dataset: data.Dataset, batch: int = 1000) -> float:
    """Share of images that a float network classifies correctly."""
    net.eval()
    with torch.no_grad():
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in dataset.batches(batch)) / len(dataset)


def pretrain(
    out: Path | None = None,
    *,
    seed: int = 1,
    epochs: int = 8,
    batch: int = 128,
    lr: float = 0.1,
    data_dir: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train LeNet-5 on Fashion-MNIST with SGD and a one-cycle learning rate, and write a safetensors file.

    Returns
    -------
    dict
        What the file's metadata says: accuracy, seed, versions, data checksums, hyper-parameters.
    """
    console = console or Console(markup=False, emoji=False)
    out = out or models.pretrained_file("lenet5")
    train, test = data.load("fashion-mnist", "train", data_dir), data.load("fashion-mnist", "test", data_dir)
    torch.manual_seed(seed)
    net = models.lenet5()
    steps = epochs * (len(train) // batch)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            net.train()
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
            for index in order[: len(train) // batch * batch].split(batch):
                x, y = train.batch(index)
                loss = F.cross_entropy(net(x), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.advance(task)
            console.print(f"epoch {epoch + 1}/{epochs}: test accuracy {accuracy(net, test):.4f}")
    made = {
        "network": "lenet5",
        "data": "fashion-mnist",
        "test_accuracy": round(accuracy(net, test), 6),
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": seed,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "optimiser": "SGD, Nesterov momentum 0.9, weight decay 5e-4, OneCycleLR",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "sha256": {**train.sha256, **test.sha256},
    }
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    files.write_atomic(out, save(state, {"redline": json.dumps(made, sort_keys=True)}))
    console.print(f"test accuracy {made['test_accuracy']:.4f}; wrote {out}")
    return made
