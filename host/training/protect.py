"""Which layers to protect: policies that measure the layers and name the one that errors hurt most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from host.faults.models import Fault
from host.faults.random_streams import seed_for
from host.program.arrangement import gather
from host.program.integer import run_layer
from host.program.layers import INPUT
from host.training.twin import AttachError, Twin

BATCH = 128
"""Images a launch, while measuring."""


@dataclass(frozen=True)
class Choice:
    """What a policy chose, and why.

    Attributes
    ----------
    names : tuple of str
        The layers to protect.
    policy : str
        What was measured, in words.
    scores : dict of float
        The measured figure of every layer, by name.
    """

    names: tuple[str, ...]
    policy: str
    scores: dict[str, float]


Policy = Callable[[Twin], list[str]]


@dataclass
class by_error_distribution:
    """Protect the layer with the largest share of badly wrong outputs (Xu et al. 2019, critical layer protection).

    The share is of the layer's final output integers with `|faulty - clean| > threshold`, over `images`; `clean` is
    what the layer makes of the same input without faults, so that a layer answers for its own errors only.

    Parameters
    ----------
    faults : Fault
    images : float tensor, shape (N, C, H, W)
    threshold : int
        T, in units of the layer's output integers; 5 in the paper.
    count : int
        How many layers to protect.
    inherited : bool
        Compare with a fault-free run of the whole network instead: errors that come in with the input count too, which
        favours the last layers.
    seed : int
        Of the purpose "protection": the choice never sees the faults of the test.

    After use, `choice` tells the shares.
    """

    faults: Fault
    images: torch.Tensor
    threshold: int = 5
    count: int = 1
    inherited: bool = False
    seed: int = 0
    choice: Choice | None = None

    def __call__(self, twin: Twin) -> list[str]:
        scores = error_shares(
            twin,
            self.faults,
            self.images,
            threshold=self.threshold,
            inherited=self.inherited,
            seed=seed_for("protection", self.seed),
        )
        # Ties go to the earlier layer.
        names = sorted(scores, key=lambda name: -scores[name])[: self.count]
        self.choice = Choice(tuple(names), f"largest share of outputs with |error| > {self.threshold}", scores)
        return names


@dataclass
class by_accuracy:
    """Protect the layer whose protection alone gives the best accuracy under faults (leave one protected out).

    Parameters
    ----------
    faults : Fault
    images : float tensor, shape (N, C, H, W)
    labels : int64 tensor, shape (N,)
    seed : int
        Of the purpose "protection": the choice never sees the faults of the test.

    After use, `choice` tells the accuracies.
    """

    faults: Fault
    images: torch.Tensor
    labels: torch.Tensor
    seed: int = 0
    choice: Choice | None = None

    def __call__(self, twin: Twin) -> list[str]:
        before = twin.protected
        scores = {}
        try:
            for name in twin.layers:
                twin.protect([name])
                scores[name] = _accuracy(twin, self.faults, self.images, self.labels, seed_for("protection", self.seed))
        finally:
            twin.protect(before)
        best = max(scores, key=lambda name: scores[name])
        self.choice = Choice((best,), "best accuracy under faults with only this layer protected", scores)
        return [best]


def error_shares(
    twin: Twin,
    faults: Fault,
    images: torch.Tensor,
    *,
    threshold: int = 5,
    inherited: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Share of each layer's final output integers with `|faulty - clean| > threshold`, by layer name.

    `clean` is the layer's fault-free output on the input it got; with `inherited`, that of a fault-free network.

    Raises
    ------
    AttachError
        If there are no images.
    """
    wrong, total = dict.fromkeys(twin.layers, 0), dict.fromkeys(twin.layers, 0)
    for name, distance in distances(twin, faults, images, inherited=inherited, seed=seed):
        wrong[name] += int(np.count_nonzero(distance > threshold))
        total[name] += distance.size
    return {name: wrong[name] / total[name] for name in twin.layers}


def distances(
    twin: Twin, faults: Fault, images: torch.Tensor, *, inherited: bool = False, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int16]]]:
    """`|faulty - clean|` of every layer's final output integers, batch by batch: name, and shape (n, M, PH, PW).

    `clean` is as in `error_shares`. The faults are in effect until the last batch has been taken.

    Raises
    ------
    AttachError
        If there are no images.
    """
    if not len(images):
        raise AttachError("measuring errors needs at least one image")
    program = twin.program
    quantised = program.quantise_input(images)
    with twin.faulty(faults, seed=seed):
        for at in range(0, len(quantised), BATCH):
            batch = quantised[at : at + BATCH]
            faulty = twin.run(batch, writeback=True).out
            values = {INPUT: program.fold_input(batch)}
            for layer in program.layers:
                name = layer.name
                integers = program.weights[name], program.biases[name]
                clean = run_layer(gather(values, layer), *integers, layer, program.config.arithmetic).out
                values[name] = clean if inherited else faulty[name]
                yield name, np.abs(faulty[name].astype(np.int16) - clean.astype(np.int16))


def _accuracy(twin: Twin, faults: Fault, images: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    training = twin.training
    twin.eval()
    right = 0
    try:
        with torch.no_grad(), twin.faulty(faults, seed=seed):
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                right += int((twin(x).argmax(1) == y).sum())
    finally:
        twin.train(training)
    return right / len(labels)
