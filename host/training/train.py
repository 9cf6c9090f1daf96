"""Retraining a twin, in steps that can be interrupted and taken up again, and measuring it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional as F

from host.datasets.data import Labelled
from host.devices.device import LaunchReport
from host.faults.models import Fault
from host.faults.spec import brief
from host.interrupt import deferred_interrupt
from host.store.files import write_atomic
from host.training.twin import Twin
from hw.errors import RedlineError

Progress = Callable[[int, int, str], None]
"""Called after each step or batch with images done, images in all, and a word on how it goes."""

FORMAT = "redline checkpoint 1"


class CheckpointError(RedlineError, RuntimeError):
    """A checkpoint is damaged or belongs to another run; the message says why and what to do."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during retraining, after the state was saved."""


@dataclass(frozen=True)
class Recipe:
    """How to retrain: SGD with momentum, the learning rate falling to zero along a half cosine.

    Attributes
    ----------
    images : int
        Training images in all (forward passes on the device); more than the data set has means several epochs.
    batch : int
        Images a step.
    lr : float
        Learning rate of the first step.
    momentum : float
    clip : float
        Largest norm of a step's gradient; errors now and then make a step's gradient huge.
    seed : int
        Of the order of images.
    """

    images: int = 12_800
    batch: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    clip: float = 1.0
    seed: int = 0

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
            raise ValueError(f"a batch of {self.batch} images cannot be drawn from {size}")
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
    dataset: Labelled,
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
    faults : Fault, optional
        Image i of the data set meets the faults of image i under `seed`, whatever the batch.
    writeback : bool
        Write every layer's output back although nobody needs it: to measure what that costs.
    """
    report = LaunchReport()
    predicted: list[npt.NDArray[np.int64]] = []
    right = done = 0
    sha = hashlib.sha256()
    labels = dataset.labels.numpy()
    last = twin.program.layers[-1].name
    # Summed here: in the twin's own report, other threads count, too.
    with torch.no_grad(), nullcontext() if faults is None else twin.faulty(faults, seed=seed):
        for x, y in dataset.batches(batch):
            outputs = twin.run(twin.program.quantise_input(x), writeback=writeback)
            report += outputs.report
            sha.update(np.ascontiguousarray(outputs.out[last]).tobytes())
            predicted.append(outputs.out[last].reshape(len(y), -1).argmax(1))
            right += int((predicted[-1] == y.numpy()).sum())
            done += len(y)
            if progress is not None:
                progress(done, len(dataset), f"{100 * right / done:.1f} % right")
    return Evaluation(np.concatenate(predicted), labels, report, sha.hexdigest())


def retrain(
    twin: Twin,
    dataset: Labelled,
    recipe: Recipe,
    *,
    faults: Fault | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    every: int = 25,
    progress: Progress | None = None,
) -> LaunchReport:
    """Retrain the twin's network on its device, in place (TWA: training with the accelerator).

    With a checkpoint file, state is saved every `every` steps and at Ctrl-C, and an existing file is taken up: the
    result is the same, bit for bit, as without the interruption. Image n of the training meets the faults of image n
    under `seed`, those of the purpose "training": others than `evaluate` meets under any seed.

    Returns
    -------
    LaunchReport
        Sum over all launches of the training, those before an interruption included.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another recipe, seed or network.
    Interrupted
        After Ctrl-C, with the state saved.
    """
    parameters = dict(twin.net.named_parameters())
    optimiser = torch.optim.SGD(parameters.values(), lr=recipe.lr, momentum=recipe.momentum)
    # Nothing else needs a description of the faults.
    described = None if faults is None or checkpoint is None else brief(faults.spec())
    identity = {"recipe": asdict(recipe), "seed": seed, "faults": described, "protected": twin.protected}
    step, report = 0, LaunchReport()
    if checkpoint is not None and checkpoint.exists():
        step, report = _restore(checkpoint, twin, optimiser, identity)

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
                x, y = dataset.batch(recipe.order(step, len(dataset)))
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate(step)
                twin.report = LaunchReport()
                loss = F.cross_entropy(twin(x), y)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
                optimiser.step()
                report += twin.report
                step += 1
                stop = interrupted()
                if checkpoint is not None and (stop or step % every == 0 or step == recipe.steps):
                    _save(checkpoint, twin, optimiser, identity, step, report)
                if progress is not None:
                    progress(step * recipe.batch, recipe.steps * recipe.batch, f"loss {float(loss.detach()):.3f}")
                if stop:
                    raise Interrupted(f"stopped after {step} of {recipe.steps} steps")
    finally:
        twin.report = before + report
        twin.train(training)
    return report


def _save(
    path: Path,
    twin: Twin,
    optimiser: torch.optim.SGD,
    identity: dict[str, Any],
    step: int,
    report: LaunchReport,
) -> None:
    """Write network, optimiser and random state as one file."""
    tensors = {f"net.{name}": tensor.detach() for name, tensor in twin.net.state_dict().items()}
    for name, parameter in twin.net.named_parameters():
        momentum = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    tensors["rng"] = torch.get_rng_state()
    state = {"format": FORMAT, "identity": identity, "step": step, "report": asdict(report)}
    content = save({k: v.contiguous() for k, v in tensors.items()}, {"redline": json.dumps(state, sort_keys=True)})
    write_atomic(path, content)


def _restore(path: Path, twin: Twin, optimiser: torch.optim.SGD, identity: dict[str, Any]) -> tuple[int, LaunchReport]:
    """Load a checkpoint into network, optimiser and random state; returns the steps done and their report."""
    state, tensors = _read(path)
    wanted = json.loads(json.dumps(identity))
    for key, value in wanted.items():
        if state["identity"].get(key) != value:
            raise CheckpointError(
                f"{path}: belongs to another run: {key} was {state['identity'].get(key)}, now {value}; "
                f"choose another name or delete it"
            )
    twin.net.load_state_dict(checkpoint_weights(path))
    for name, parameter in twin.net.named_parameters():
        if f"momentum.{name}" in tensors:
            optimiser.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]
    torch.set_rng_state(tensors["rng"])
    return int(state["step"]), LaunchReport(**state["report"])


def save_weights(path: Path, net: torch.nn.Module) -> None:
    """Write a network's weights as a file that `checkpoint_weights` reads: a training that needs no resuming."""
    tensors = {f"net.{name}": tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    write_atomic(path, save(tensors, {"redline": json.dumps({"format": FORMAT})}))


def checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's `state_dict` in a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    _, tensors = _read(path)
    return {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and tensors of a checkpoint file."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["redline"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        found = state["format"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it to start this training anew") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: a checkpoint of another version; delete it to start this training anew")
    return state, tensors
