"""Retraining: reproducible, and the same with and without an interruption."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from host import models
from host.datasets.data import Dataset
from host.devices.reference import ReferenceDevice
from host.faults.models import Replay, SoftErrors
from host.faults.plan import FaultPlan
from host.interrupt import Interrupted
from host.training.checkpoint import CheckpointError
from host.training.protect import by_accuracy, by_error_distribution
from host.training.train import Recipe, evaluate, retrain
from host.training.twin import Twin, attach
from hw.config import Config

FAULTS = SoftErrors(1e-3, per="mac")
RECIPE = Recipe(images=96, batch=8, lr=0.02, seed=4)


def dataset(count: int = 64) -> Dataset:
    """Images whose class can be seen: a bright row."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, count)
    pixels = rng.integers(0, 60, (count, 1, 28, 28)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 2 * label + 4 : 2 * label + 6] += 180
    return Dataset("made", torch.from_numpy(pixels), torch.from_numpy(labels), {})


def twin(**options: object) -> Twin:
    device = ReferenceDevice(Config(saboteur=True))
    return attach(models.lenet5(pretrained=True), device, calibrate=dataset().pixels, **options)  # type: ignore[arg-type]


def weights(made: Twin) -> torch.Tensor:
    return nn.utils.parameters_to_vector(made.net.parameters()).detach()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    found = []
    for seed in (1, 1, 2):
        made = twin()
        retrain(made, dataset(), RECIPE, faults=FAULTS, seed=seed)
        found.append(weights(made))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_ctrl_c_and_taking_up_again_gives_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = twin()
    counted = retrain(whole, dataset(), RECIPE, faults=FAULTS, seed=1)
    checkpoint = tmp_path / "state.safetensors"

    def interrupt(done: int, of: int, note: str) -> None:
        if done == stop_at * RECIPE.batch:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=rf"stopped after {stop_at + 1} of 12 steps"):
        retrain(twin(), dataset(), RECIPE, faults=FAULTS, seed=1, checkpoint=checkpoint, every=100, progress=interrupt)
    resumed = twin()
    steps: list[int] = []
    report = retrain(
        resumed,
        dataset(),
        RECIPE,
        faults=FAULTS,
        seed=1,
        checkpoint=checkpoint,
        progress=lambda done, of, note: steps.append(done),
    )
    assert torch.equal(weights(whole), weights(resumed))
    assert report == counted
    assert len(steps) == RECIPE.steps - stop_at - 1


def test_a_crash_goes_on_from_the_last_checkpoint_with_the_same_result(tmp_path: Path) -> None:
    whole = twin()
    retrain(whole, dataset(), RECIPE, faults=FAULTS, seed=1)
    checkpoint = tmp_path / "state.safetensors"

    def crash(done: int, of: int, note: str) -> None:
        if done == 7 * RECIPE.batch:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        retrain(twin(), dataset(), RECIPE, faults=FAULTS, seed=1, checkpoint=checkpoint, every=5, progress=crash)
    resumed = twin()
    retrain(resumed, dataset(), RECIPE, faults=FAULTS, seed=1, checkpoint=checkpoint)
    assert torch.equal(weights(whole), weights(resumed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.safetensors"]


def test_a_finished_checkpoint_is_not_trained_further(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    first, second = twin(), twin()
    retrain(first, dataset(), RECIPE, checkpoint=checkpoint)
    retrain(second, dataset(), RECIPE, checkpoint=checkpoint, progress=lambda *_: pytest.fail("trained"))
    assert torch.equal(weights(first), weights(second))


def test_damaged_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    retrain(twin(), dataset(), RECIPE, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state.safetensors: damaged .* delete it to start this training anew"):
        retrain(twin(), dataset(), RECIPE, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 9}, "seed was 0, now 9"), ({"faults": FAULTS}, "faults was None"), ({"recipe": 0.5}, "recipe was")],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    checkpoint = tmp_path / "state.safetensors"
    retrain(twin(), dataset(), RECIPE, checkpoint=checkpoint)
    recipe = Recipe(images=96, batch=8, lr=0.5, seed=4) if change.pop("recipe", None) else RECIPE
    with pytest.raises(CheckpointError, match=f"belongs to another run: {named}"):
        retrain(twin(), dataset(), recipe, checkpoint=checkpoint, **change)  # type: ignore[arg-type]


def test_a_checkpoint_of_other_protection_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    retrain(twin(), dataset(), RECIPE, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"protected was \[\], now \['fc3'\]"):
        retrain(twin(protect=["fc3"]), dataset(), RECIPE, checkpoint=checkpoint)


@pytest.mark.parametrize("per", ["mac", "bit"])
def test_training_meets_other_faults_than_the_test_under_the_same_seed(
    per: Literal["mac", "bit"], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[FaultPlan] = []
    draw = SoftErrors.draw

    def kept(self: SoftErrors, *arguments: Any) -> FaultPlan:
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(SoftErrors, "draw", kept)
    made, faults = twin(), SoftErrors(1e-3, per)
    trained = dataset(8)
    plans = {}
    for name, run in {
        "test": lambda: evaluate(made, trained, faults=faults),
        "training": lambda: retrain(made, trained, Recipe(images=8, batch=8), faults=faults),
        "shares": lambda: by_error_distribution(faults, trained.pixels)(made),
        "accuracy": lambda: by_accuracy(faults, trained.pixels, trained.labels)(made),
    }.items():
        drawn.clear()
        run()
        plans[name] = max(drawn, key=len)
    places = {
        name: {tuple(row) for row in np.stack([*plan.columns.values()], axis=1).tolist()}
        for name, plan in plans.items()
    }
    assert places["shares"] == places["accuracy"], "both choose what to protect"
    for one, other in (("test", "training"), ("test", "shares"), ("training", "shares")):
        shared = len(places[one] & places[other])
        assert shared <= 0.02 * len(places[one]) + 3, (one, other, shared)
        assert len(places[one]) > 100
    assert plans["test"] == draw(faults, made.program, 0, 8, 0), "what `draw` gives is what the test meets"


def test_two_plans_that_print_alike_are_two_runs(tmp_path: Path) -> None:
    made, path = twin(), tmp_path / "state.safetensors"
    names = made.program.names
    one, other = (
        Replay(FaultPlan.of(names, np.arange(3000), 0, 2, 5, 0, np.r_[np.ones(2999, int), last])) for last in (1, 2)
    )
    recipe = Recipe(images=8, batch=8)
    retrain(made, dataset(), recipe, faults=one, checkpoint=path)
    with pytest.raises(CheckpointError, match="faults was .* now"):
        retrain(twin(), dataset(), recipe, faults=other, checkpoint=path)


def test_every_epoch_visits_each_image_once_in_another_order() -> None:
    recipe = Recipe(images=64, batch=8, seed=3)
    epochs = [torch.cat([recipe.order(step, 32) for step in range(first, first + 4)]) for first in (0, 4)]
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist()) == list(range(32))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_learning_rate_falls_from_its_start_to_zero() -> None:
    rates = [RECIPE.rate(step) for step in range(RECIPE.steps)]
    assert rates[0] == RECIPE.lr
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.05 * RECIPE.lr


def test_evaluation_does_not_depend_on_the_batch_and_counts_the_faults() -> None:
    made = twin()
    first = evaluate(made, dataset(), faults=FAULTS, seed=2, batch=64)
    second = evaluate(made, dataset(), faults=FAULTS, seed=2, batch=5)
    assert first.predicted.tolist() == second.predicted.tolist()
    assert first.digest == second.digest
    assert first.report.faults_applied == second.report.faults_applied > 0


def test_evaluation_keeps_the_mode_and_adds_to_the_twins_report() -> None:
    made = twin().train()
    made.report = evaluate(made, dataset(), faults=FAULTS).report
    before = made.report.faults_applied
    evaluate(made, dataset(), faults=FAULTS)
    assert made.training
    assert made.report.faults_applied == 2 * before


def test_retraining_recovers_what_faults_took() -> None:
    # New data for the network; retraining under faults must make it right there.
    made, data = twin(), dataset(256)
    faults = SoftErrors(3e-4, per="mac")
    before = evaluate(made, data, faults=faults, seed=1).accuracy
    retrain(made, data, Recipe(images=2560, batch=32, lr=0.05), faults=faults, seed=2)
    after = evaluate(made, data, faults=faults, seed=1).accuracy
    assert after > max(0.5, before + 0.2), f"{before:.2f} -> {after:.2f}"
