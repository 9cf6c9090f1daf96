"""A small campaign that tests can run in seconds, and that processes of their own can import."""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from host import models
from host.campaign.campaign import Campaign
from host.campaign.pool import Executor
from host.campaign.stop import Rule, Trials
from host.campaign.store import Store, seal_of
from host.campaign.trials import Faults, SingleFault
from host.devices import registry
from host.training.twin import Twin, attach


@dataclass(frozen=True)
class Random:
    """Images of noise with labels, by seed."""

    pixels: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, count: int, seed: int = 0) -> Random:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.rand(count, 1, 28, 28, generator=generator), torch.randint(10, (count,), generator=generator))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pixels[index], self.labels[index]

    def batches(self, size: int):
        yield from zip(self.pixels.split(size), self.labels.split(size), strict=True)


def twins(seed: int = 0, protect: str = "conv2", **config: Any) -> dict[str, Twin]:
    net = models.lenet5(pretrained=True)
    if seed:
        with torch.no_grad():
            net.fc3.bias += 0.25 * seed
    device = registry.device("reference", lanes=8, vec=8, saboteur=True, **config)
    pixels = Random.of(16).pixels
    return {
        "original": attach(net, device, calibrate=pixels),
        "clp": attach(net, device, calibrate=pixels, protect=[protect]),
    }


ANYWHERE = SingleFault(("mac", "weight", "feature", "input"))


def campaign(faults: Faults = ANYWHERE, images: int = 4, seed: int = 3, **more: object) -> Campaign:
    return Campaign(twins(), faults, Random.of(60), images, seed, "reference", **more)  # type: ignore[arg-type]


def run(folder: Path, rules: list[Rule], workers: int | None, executor: Executor = "processes") -> None:
    campaign().run(rules, folder, workers=workers, executor=executor)


def reseal(path: Path) -> None:
    """Give a store that was changed by hand the checksums of what it holds now."""
    with sqlite3.connect(path) as db:
        outcomes = db.execute("SELECT * FROM outcome").fetchall()
        for trial in db.execute("SELECT * FROM trial").fetchall():
            seal = seal_of(trial, [row for row in outcomes if row[0] == trial[0]])
            db.execute("UPDATE seal SET sha256 = ? WHERE number = ?", (seal, trial[0]))
    db.close()
    store = object.__new__(Store)
    store._db = sqlite3.connect(path)
    store._seal_meta()
    store._db.commit()
    store._db.close()


if __name__ == "__main__":
    # tests kill this
    run(Path(sys.argv[1]), [Trials(int(sys.argv[2]))], int(sys.argv[3]), *sys.argv[4:])  # type: ignore[arg-type]
