"""What one process of a campaign does: runs trials on its own device and says what became of each image."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as serialise

from host.campaign.masking import where_any_masked, where_masked
from host.campaign.outcomes import Ranking, outcomes
from host.campaign.space import STUCK, Place
from host.campaign.store import OutcomeRow, StoreError, TrialRow
from host.campaign.trials import Faults, Trial, TrialSequence, conditions_of
from host.devices import registry
from host.devices.device import Int8
from host.devices.runtime import Runtime
from host.faults import canary
from host.program.layers import INPUT
from host.program.program import Program
from host.store.checked import read_checked, tensors_digest
from hw.config import Config

DATA, DATA_FORMAT, DATA_VERSION = "data.safetensors", "redline-data", 1
WRITTEN_ANEW = "run the campaign's command again, which writes it anew"
CACHE_BYTES = 256 << 20
"""Fault-free outputs that a process keeps."""


class DamagedData(StoreError, ValueError):
    """A campaign's copy of its images is missing or damaged."""


def data_file(images: Int8, labels: npt.NDArray[np.int64]) -> bytes:
    """The file that `Setup.data` reads."""
    tensors: dict[str, npt.NDArray[Any]] = {"images": images, "labels": labels}
    layout = f"{images.shape}"
    about = {"format": DATA_FORMAT, "version": str(DATA_VERSION), "layout": layout}
    return serialise(tensors, about | {"sha256": tensors_digest(layout, tensors)})


@dataclass(frozen=True)
class Setup:
    """All that a worker needs; it reads the rest from the campaign's folder.

    Attributes
    ----------
    folder : Path
        With `programs/ARM.safetensors` and `data.safetensors`.
    arms : tuple of str
    device : str
    config : Config
    options : dict
        The device's own.
    faults : SingleFault or Fault
    seed, images : int
    excluded : tuple of str
        Layers that the accelerator cannot run.
    """

    folder: Path
    arms: tuple[str, ...]
    device: str
    config: Config
    options: dict[str, Any]
    faults: Faults
    seed: int
    images: int
    excluded: tuple[str, ...] = ()

    def program(self, arm: str) -> Program:
        """An arm's network."""
        return Program.load(self.folder / "programs" / f"{arm}.safetensors")

    def data(self) -> tuple[Int8, npt.NDArray[np.int64]]:
        """Quantised images, int8 of shape (N, C, H, W), and labels, int64 of shape (N,).

        Raises
        ------
        StoreError
            If the campaign's copy of them is missing or damaged.
        """
        _, tensors = read_checked(self.folder / DATA, DATA_FORMAT, DATA_VERSION, "layout", WRITTEN_ANEW, DamagedData)
        images, labels = (tensors.get(name, np.empty(0)) for name in ("images", "labels"))
        if images.dtype != np.int8 or labels.dtype != np.int64 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DamagedData(f"{self.folder / DATA}: not images with their labels; {WRITTEN_ANEW}")
        return images, labels

    def trials(self, program: Program, data: int) -> TrialSequence:
        """The campaign's trials."""
        return TrialSequence(program, self.faults, self.seed, self.images, data, self.excluded)


class Chunk(NamedTuple):
    """Results of consecutive trials."""

    first: int
    trials: list[TrialRow]
    outcomes: list[OutcomeRow]


class Bench:
    """Runs trials on a device."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self.setup = setup
        self.images, self.labels = setup.data()
        self.programs = {arm: setup.program(arm) for arm in setup.arms}
        first = self.programs[setup.arms[0]]
        self.trials = setup.trials(first, len(self.images))
        self.device = registry.device(setup.device, setup.config, **setup.options)
        self._arms = {arm: _Arm(Runtime(program, self.device), self.images) for arm, program in self.programs.items()}
        for arm in self._arms.values():
            canary.check(arm.runtime, self.images[:1], setup.faults.sites, conditions_of(setup.faults))

    def run(self, first: int, count: int) -> Chunk:
        """Trials `first` to `first + count - 1`, in every arm."""
        trials = [self.trials.trial(number) for number in range(first, first + count)]
        # Arm by arm: changing the weights in the device's memory is not free.
        found = [row for name in self._arms for trial in trials for row in self._outcomes(name, trial)]
        return Chunk(first, [_row(trial) for trial in trials], found)

    def _outcomes(self, name: str, trial: Trial) -> list[OutcomeRow]:
        arm = self._arms[name]
        program = arm.runtime.program
        last = program.names[-1]
        clean = arm.clean(trial.images)
        faulty = arm.runtime.forward(self.images[trial.images], plan=trial.plan).out
        labels = self.labels[trial.images]
        what = outcomes(faulty[last], clean[last], labels)
        before = Ranking.of(clean[last])
        where: list[tuple[str | None, str | None]] = [(None, None)] * len(trial.images)
        rows = np.flatnonzero(what.masked)
        stored = {INPUT: program.fold_input(self.images[trial.images[rows]])}
        stored |= {layer: values[rows] for layer, values in clean.items()}
        wrong = {layer: values[rows] for layer, values in faulty.items()}
        for i, found in zip(rows, _masked(program, trial, rows, stored, wrong), strict=True):
            where[i] = found
        clean_top1, clean_top5 = before.first == labels, before.holds(labels)
        return [
            OutcomeRow(
                trial.number, name, i, int(image), int(what.masked[i]), where[i][0], where[i][1],
                int(what.sdc1[i]), int(what.sdc5[i]), int(what.top1[i]), int(what.top5[i]),
                int(clean_top1[i]), int(clean_top5[i]),
            )
            for i, image in enumerate(trial.images)
        ]  # fmt: skip

    def close(self) -> None:
        """Close the device."""
        self.device.close()


class _Arm:
    """A network on the device, and its fault-free outputs, kept as long as there is room."""

    def __init__(self, runtime: Runtime, images: Int8) -> None:
        self.runtime = runtime
        shapes = {layer.name: layer.out_shape for layer in runtime.program.layers}
        self._images = images
        self._known = np.zeros(len(images), bool)
        room = len(images) * sum(int(np.prod(shape)) for shape in shapes.values()) <= CACHE_BYTES
        self._kept = {n: np.empty((len(images), *shape), np.int8) for n, shape in shapes.items()} if room else None

    def clean(self, images: npt.NDArray[np.int64]) -> dict[str, Int8]:
        """Fault-free final outputs of images, by layer."""
        if self._kept is None:
            return self.runtime.forward(self._images[images]).out
        new = images[~self._known[images]]
        if len(new):
            outputs = self.runtime.forward(self._images[new]).out
            for name, kept in self._kept.items():
                kept[new] = outputs[name]
            self._known[new] = True
        return {name: kept[images] for name, kept in self._kept.items()}


def _masked(
    program: Program,
    trial: Trial,
    rows: npt.NDArray[np.int64],
    clean: dict[str, Int8],
    faulty: dict[str, Int8],
) -> Sequence[tuple[str | None, str | None]]:
    """Layer and stage at which the trial's faults disappeared, for those of its images."""
    if isinstance(trial.place, Place):
        return where_masked(program, trial.place, clean, faulty)
    return where_any_masked(program, trial.plan.of_images(rows), clean, faulty)


def _row(trial: Trial) -> TrialRow:
    number, flips, digest, place = trial.number, len(trial.plan), trial.plan.digest, trial.place
    if isinstance(place, Place):
        return TrialRow(number, flips, digest, **asdict(place))
    if place is not None:
        return TrialRow(number, flips, digest, site=STUCK, **place._asdict())
    return TrialRow(number, flips, digest)


# -- in a process of its own

_setup: Setup | None = None
_bench: Bench | None = None


def start(setup: Setup) -> None:
    """Initialise a worker process."""
    global _setup
    _setup = setup
    # Ctrl-C is the parent's to handle; it lets trials finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def work(first: int, count: int) -> Chunk:
    """Run trials in a worker process; the first call makes its bench."""
    global _bench
    if _bench is None:
        assert _setup is not None
        _bench = Bench(_setup)
    return _bench.run(first, count)
