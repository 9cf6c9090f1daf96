"""A small retraining with a checkpoint, as a process that tests kill."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from host import models
from host.devices import registry
from host.faults.models import SoftErrors
from host.training.train import Recipe, retrain
from host.training.twin import attach
from tests.host.campaign.small import Random


def run(checkpoint: Path) -> None:
    torch.set_num_threads(1)
    net, data = models.lenet5(pretrained=True), Random.of(64)
    with registry.device("emulator", lanes=8, vec=8, saboteur=True) as device:
        twin = attach(net, device, calibrate=data.pixels[:16])
        recipe = Recipe(images=40 * 8, batch=8, seed=5)
        retrain(twin, data, recipe, faults=SoftErrors(rate=1e-4), checkpoint=checkpoint, every=1)


if __name__ == "__main__":
    print("begun", flush=True)
    run(Path(sys.argv[1]))
