"""Retraining a twin, in steps that can be interrupted and taken up again, and measuring it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from host.datasets.data import DataError
from host.datasets.given import Given
from host.devices.device import LaunchReport
from host.faults.models import Fault
from host.faults.spec import brief
from host.interrupt import Interrupted, deferred_interrupt
from host.training.checkpoint import identity, restore, save_checkpoint
from host.training.saturation import Recalibration
from host.training.twin import Twin
from hw.errors import RedlineError

Progress = Callable[[int, int, str], None]
"""Called after each step or batch with images done, images in all, and a word on how it goes."""

DEFAULT_RECALIBRATION = Recalibration()


class RecipeError(RedlineError, ValueError):
    """A recipe that cannot be followed; the message says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """How to retrain: SGD with momentum, the learning rate falling to zero along a half cosine.

    Attributes
    ----------
    images : int
        Training images in all (forward passes on the device); more than the data set has means several epochs. Whole
        steps are taken: what is left of them makes none.
    batch : int
        Images a step.
    lr : float
        Learning rate of the first step.
    momentum : float
    clip : float
        Largest norm of a step's gradient; errors now and then make a step's gradient huge.
    seed : int
        Of the order of images.

    Raises
    ------
    RecipeError
        If it has no step, or a step that is none.
    """

    images: int = 12_800
    batch: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "batch", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value:
                raise RecipeError(f"{name} is a whole number, not {value!r}")
        if self.batch < 1:
            raise RecipeError(f"a step needs at least one image, not batch={self.batch}")
        if self.images < self.batch:
            raise RecipeError(
                f"images={self.images} is less than one step of batch={self.batch}, nothing would be trained: give "
                "more images or a smaller batch"
            )
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise RecipeError(f"lr is finite and not negative, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"momentum is from 0 to below 1, not {self.momentum}")
        if not self.clip > 0:
            raise RecipeError(f"clip is above 0, not {self.clip}")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.images // self.batch

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0)."""
        return self.lr * 0.5 * (1 + float(np.cos(np.pi * step / self.steps)))

    def order(self, step: int, size: int) -> torch.Tensor:
        """Indices of a step's images in a data set of `size`: a shuffle an epoch, a function of the seed only."""
        if self.batch > size:
            raise RecipeError(
                f"a batch of {self.batch} images cannot be drawn from {size}: give more images or a smaller batch"
            )
        per_epoch = size // self.batch
        epoch, at = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(size, generator=generator)[at * self.batch : (at + 1) * self.batch]


@dataclass(frozen=True)
class Evaluation:
    """What a network got right.

    Attributes
    ----------
    predicted : int64 array, shape (N,)
        Class of the largest output (the first, where several are).
    labels : int64 array, shape (N,)
    report : LaunchReport
        Sum over the launches.
    digest : str
        SHA-256 over the network's int8 outputs, hexadecimal: equal outputs, equal digest.
    """

    predicted: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    report: LaunchReport
    digest: str = ""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each image was classified correctly, shape (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly."""
        return float(self.right.mean())


def evaluate(
    twin: Twin,
    dataset: Any,
    *,
    faults: Fault | None = None,
    seed: int = 0,
    batch: int = 256,
    writeback: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Classify a data set on the device.

    Parameters
    ----------
    dataset : Labelled, torch Dataset or DataLoader, or (images, labels)
        A DataLoader's images are taken in its own order and batches.
    faults : Fault, optional
        Image i of the data set meets the faults of image i under `seed`, whatever the batch.
    writeback : bool
        Write every layer's output back although nobody needs it: to measure what that costs.

    Raises
    ------
    DataError
        If the data set is empty, or none; names what is wrong with a batch.
    ProgramError
        If its images are of another size than the network takes.
    """
    if batch < 1:
        raise RecipeError(f"a launch needs at least one image, not batch={batch}")
    given = Given(dataset)
    report = LaunchReport()
    predicted: list[npt.NDArray[np.int64]] = []
    labels: list[npt.NDArray[np.int64]] = []
    right = done = 0
    sha = hashlib.sha256()
    last = twin.program.layers[-1].name
    # Summed here: in the twin's own report, other threads count, too.
    with torch.no_grad(), nullcontext() if faults is None else twin.faulty(faults, seed=seed):
        for x, y in given.batches(batch):
            outputs = twin.run(twin.program.quantise_input(x), writeback=writeback)
            report += outputs.report
            sha.update(np.ascontiguousarray(outputs.out[last]).tobytes())
            labels.append(y.numpy())
            predicted.append(outputs.out[last].reshape(len(y), -1).argmax(1))
            right += int((predicted[-1] == labels[-1]).sum())
            done += len(y)
            if progress is not None:
                progress(done, max(done, len(given)), f"{100 * right / done:.1f} % right")
    return Evaluation(np.concatenate(predicted), np.concatenate(labels), report, sha.hexdigest())


def retrain(
    twin: Twin,
    dataset: Any,
    recipe: Recipe,
    *,
    faults: Fault | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    every: int = 25,
    recalibrate: Recalibration | None = DEFAULT_RECALIBRATION,
    progress: Progress | None = None,
) -> LaunchReport:
    """Retrain the twin's network on its device, in place (TWA: training with the accelerator).

    With a checkpoint file, state is saved every `every` steps and at Ctrl-C, and an existing file is taken up: the
    result is the same, bit for bit, as without the interruption. Image n of the training meets the faults of image n
    under `seed`, those of the purpose "training": others than `evaluate` meets under any seed.

    Parameters
    ----------
    dataset : Labelled, torch Dataset or DataLoader, or (images, labels)
        Order and batches are the recipe's; of a DataLoader, its data set is taken.
    checkpoint : Path, optional
        Of this training only: of another network, data set, accelerator, recipe or fault it is refused.
    recalibrate : Recalibration, optional
        When ranges are chosen anew, on the first images of the data set; None: never, fractions stay as attached.

    Returns
    -------
    LaunchReport
        Sum over all launches of the training, those before an interruption included.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another recipe, seed or network.
    DataError
        If the data set is empty, or none; names what is wrong with a batch.
    RecipeError
        If a batch is larger than the data set.
    Interrupted
        After Ctrl-C, with the state saved.
    """
    if every < 1:
        raise RecipeError(f"a checkpoint is written every step or less often, not every={every}")
    given = Given(dataset)
    size = given.random_access()
    recipe.order(0, size)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    parameters = dict(twin.net.named_parameters())
    optimiser = torch.optim.SGD(parameters.values(), lr=recipe.lr, momentum=recipe.momentum)
    step, report = 0, LaunchReport()
    owner: dict[str, Any] = {}
    if checkpoint is not None:
        owner = identity(
            twin,
            recipe=asdict(recipe),
            seed=seed,
            faults=None if faults is None else brief(faults.spec()),
            recalibrate=None if recalibrate is None else asdict(recalibrate),
            data=given.identity(),
        )
        if checkpoint.exists():
            step, report = restore(checkpoint, twin, optimiser, owner)
    training, before = twin.training, twin.report
    twin.train()
    try:
        context = (
            nullcontext()
            if faults is None
            else twin.faulty(faults, seed=seed, first_image=step * recipe.batch, purpose="training")
        )
        with context, deferred_interrupt() as interrupted:
            while step < recipe.steps:
                x, y = given.batch(recipe.order(step, size))
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate(step)
                twin.report = LaunchReport()
                value = twin(x)
                loss = F.cross_entropy(value, _classes(y, value).to(value.device))
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
                optimiser.step()
                report += twin.report
                step += 1
                stop = interrupted()
                note = f"loss {float(loss.detach()):.3f}"
                if recalibrate is not None and step < recipe.steps and recalibrate.due(step, twin):
                    changed = twin.recalibrate(given.batch(torch.arange(min(recalibrate.images, size)))[0])
                    note += f", ranges chosen anew: {', '.join(changed)}" if changed else ""
                if checkpoint is not None and (stop or step % every == 0 or step == recipe.steps):
                    save_checkpoint(checkpoint, twin, optimiser, owner, step, report)
                if progress is not None:
                    progress(step * recipe.batch, recipe.steps * recipe.batch, note)
                if stop:
                    raise Interrupted(f"stopped after {step} of {recipe.steps} steps")
    finally:
        twin.report = before + report
        twin.train(training)
    return report


def _classes(labels: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Labels that the network has outputs for; `DataError` if it has none for one."""
    classes = value.shape[1]
    if value.dim() != 2 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the network's result, shape "
            f"{tuple(value.shape[1:])}: give labels from 0 to the number of outputs less 1"
        )
    return labels
