"""A checkpoint is taken up by its own training only, and only if it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from host import models
from host.devices.device import Device
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.interrupt import Interrupted
from host.training.checkpoint import (
    CheckpointError,
    checkpoint_weights,
    load_checkpoint,
    save_weights,
)
from host.training.saturation import Recalibration
from host.training.train import Recipe, RecipeError, retrain
from host.training.twin import Twin, attach
from hw.config import Config
from tests.host.training.small import Few, images, network

CONFIG = Config(lanes=4, vec=4, saboteur=True)
RECIPE = Recipe(images=32, batch=8)


def twin(net: nn.Module | None = None, device: Device | None = None, **options: Any) -> Twin:
    options = {"calibrate": images()} | options
    return attach(net or network(), device or ReferenceDevice(CONFIG), **options)


def weights(made: Twin) -> torch.Tensor:
    return nn.utils.parameters_to_vector(made.net.parameters()).detach()


def narrow() -> nn.Module:
    """A network whose last layer grows in training."""
    net = network()
    with torch.no_grad():
        net[6].weight.mul_(0.02)
        net[6].bias.zero_()
    return net


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    retrain(twin(), Few(), RECIPE, checkpoint=path)
    return path


# ---- whose it is


class Strided(Few):
    """The same labels, other images."""

    def __init__(self) -> None:
        super().__init__()
        self.x = self.x.clone()
        self.x[17, 0, 3, 3] += 0.1


def shuffled() -> Few:
    data = Few()
    data.labels = data.labels.flip(0)
    return data


def biasless() -> nn.Module:
    net = network()
    net[6] = nn.Linear(8, 3, bias=False)
    return net


OTHERS: dict[str, tuple[Callable[[], Twin], Callable[[], Any], str]] = {
    "weights of another seed": (lambda: twin(network(1)), Few, "it began with other weights"),
    "another structure": (lambda: twin(nn.Sequential(*network(), nn.ReLU())), Few, "network was"),
    "no bias": (lambda: twin(biasless()), Few, "it began with other weights"),
    "other images": (twin, Strided, "data was"),
    "other labels": (twin, shuffled, "data was"),
    "fewer images": (twin, lambda: Few(40), "data was {'images': 48, "),
    "another accelerator": (
        lambda: twin(device=ReferenceDevice(replace(CONFIG, lanes=8))),
        Few,
        "device was {'lanes': 4}, now {'lanes': 8}",
    ),
    "another device": (
        lambda: twin(device=EmulatorDevice(CONFIG)),
        Few,
        "device was {'name': 'reference'}, now {'name': 'emulator'}",
    ),
    "another gradient": (lambda: twin(gradient="clean"), Few, "gradient was straight_through, now clean"),
    "another protection": (lambda: twin(protect=["0"]), Few, r"protected was \[\], now \['0'\]"),
    "other calibration": (lambda: twin(calibrate=images() * 9), Few, "other ranges"),
    "weights by channel": (lambda: twin(per_channel=True), Few, "other ranges"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_another_training_is_refused_and_changes_nothing(written: Path, kind: str) -> None:
    make, data, said = OTHERS[kind]
    made = make()
    before, program = weights(made), made.program
    with pytest.raises(CheckpointError, match=f"belongs to another run: .*{said.replace('{', '.')}"):
        retrain(made, data(), RECIPE, checkpoint=written, progress=lambda *_: pytest.fail("trained"))
    assert torch.equal(weights(made), before)
    assert made.program is program


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": Recipe(images=32, batch=8, lr=0.5)}, "recipe was .'lr': 0.02., now .'lr': 0.5."),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"faults": SoftErrors(1e-3, per="mac")}, "faults was None, now"),
        ({"recalibrate": None}, "recalibrate was .*, now None"),
    ],
)
def test_another_way_of_training_is_refused(written: Path, change: dict[str, Any], said: str) -> None:
    recipe = change.pop("recipe", RECIPE)
    with pytest.raises(CheckpointError, match=said):
        retrain(twin(), Few(), recipe, checkpoint=written, **change)


@pytest.mark.parametrize("stop", [1, 2])
def test_the_same_twin_goes_on_where_it_was_stopped(tmp_path: Path, stop: int) -> None:
    whole, made, path = twin(), twin(), tmp_path / "state"
    retrain(whole, Few(), RECIPE)

    def interrupt(done: int, of: int, note: str) -> None:
        if done == stop * RECIPE.batch:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        retrain(made, Few(), RECIPE, checkpoint=path, progress=interrupt)
    retrain(made, Few(), RECIPE, checkpoint=path)
    assert torch.equal(weights(made), weights(whole))
    retrain(made, Few(), RECIPE, checkpoint=path, progress=lambda *_: pytest.fail("trained"))


def test_augmented_images_are_still_the_same_data_set(tmp_path: Path) -> None:
    class Augmented(Few):
        def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = super().batch(index)
            return x + 0.1 * torch.rand(x.shape), y

    retrain(twin(), Augmented(), RECIPE, checkpoint=tmp_path / "state")
    before = torch.get_rng_state()
    retrain(twin(), Augmented(), RECIPE, checkpoint=tmp_path / "state", progress=lambda *_: pytest.fail("trained"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_ranges_that_were_chosen_anew_are_taken_up_too(tmp_path: Path, stop: int) -> None:
    recipe, when = Recipe(images=80, batch=8, lr=0.5), Recalibration(every=4, share=None)
    whole, path = twin(narrow()), tmp_path / "state"
    retrain(whole, Few(), recipe, recalibrate=when)
    assert whole.program.layers != twin(narrow()).program.layers

    def crash(done: int, of: int, note: str) -> None:
        if done == stop * recipe.batch:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        retrain(twin(narrow()), Few(), recipe, recalibrate=when, checkpoint=path, every=1, progress=crash)
    resumed = twin(narrow())
    retrain(resumed, Few(), recipe, recalibrate=when, checkpoint=path)
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(whole.eval()(images()), resumed.eval()(images()))
    assert whole.program.digest == resumed.program.digest


# ---- whether it is whole


def test_every_flipped_bit_is_noticed(written: Path) -> None:
    content = written.read_bytes()
    rng = np.random.default_rng(0)
    # The header is mostly names and numbers; the rest is weights, momenta and the random state.
    places = [*rng.integers(0, 8 + 2000, 120), *rng.integers(8, len(content), 120)]
    fresh = twin()
    before = weights(fresh)
    for at in places:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        written.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state.safetensors: .*(delete it|check the path)"):
            retrain(fresh, Few(), RECIPE, checkpoint=written)
    assert torch.equal(weights(fresh), before)


def test_a_flipped_bit_of_saved_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, network())
    load_checkpoint(network(1), path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged \(the SHA-256 of its content is another\)"):
        checkpoint_weights(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 3000])
def test_a_truncated_file_is_refused(written: Path, keep: int) -> None:
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        retrain(twin(), Few(), RECIPE, checkpoint=written)


def holding(path: Path, entry: str) -> None:
    """A file with this text where a checkpoint has its state."""
    save_file({"net.x": torch.zeros(1)}, path, {"redline": entry})


STRANGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "saved weights": (lambda path: save_weights(path, network()), "holds a network's weights, and no training"),
    "plain tensors": (
        lambda path: save_file(dict(network().state_dict()), path),
        "not a checkpoint, but other tensors",
    ),
    "another kind": (lambda path: holding(path, "{}"), "not a checkpoint, but a file of another kind"),
    "an old version": (
        lambda path: save_file(
            {"x": torch.zeros(1)}, path, {"redline": json.dumps({"format": "redline checkpoint 1"})}
        ),
        "a checkpoint of another version",
    ),
    "no JSON": (lambda path: holding(path, "{"), "damaged"),
    "nested JSON": (lambda path: holding(path, "[" * 100_000), "damaged"),
    "a list": (lambda path: holding(path, "[1]"), "not a checkpoint, but"),
    "torch.save": (lambda path: torch.save(network().state_dict(), path), "damaged"),
    "text": (lambda path: path.write_text("hello"), "damaged"),
    "a folder": (lambda path: path.mkdir(), "not a plain file"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_files_that_are_no_checkpoint_are_refused_with_what_they_are(tmp_path: Path, kind: str) -> None:
    make, said = STRANGE[kind]
    make(tmp_path / "state")
    with pytest.raises(CheckpointError, match=f"state: {said}"):
        retrain(twin(), Few(), RECIPE, checkpoint=tmp_path / "state")


def test_weights_of_a_checkpoint_load_into_their_network_and_no_other(written: Path, tmp_path: Path) -> None:
    net = network(5)
    load_checkpoint(net, written)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in checkpoint_weights(written).items())
    with pytest.raises(CheckpointError, match="weights of another network"):
        load_checkpoint(models.lenet5(), written)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint_weights(tmp_path / "absent")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_kept_bit_for_bit(tmp_path: Path, kind: torch.dtype) -> None:
    whole = twin(network().to(kind))
    retrain(whole, Few(), RECIPE, checkpoint=tmp_path / "state")
    found = checkpoint_weights(tmp_path / "state")
    assert {value.dtype for value in found.values()} == {kind}
    resumed = twin(network().to(kind))
    retrain(resumed, Few(), RECIPE, checkpoint=tmp_path / "state")
    assert torch.equal(weights(whole), weights(resumed))


def test_tied_and_empty_tensors_are_kept(tmp_path: Path) -> None:
    net = network()
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("same", net[0].weight.data)
    save_weights(tmp_path / "weights", net)
    assert set(checkpoint_weights(tmp_path / "weights")) == set(net.state_dict())
    assert set(load_file(tmp_path / "weights")) == {f"net.{name}" for name in net.state_dict()}


# ---- recipes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 32}, "images=32 is less than one step of batch=64, nothing would be trained"),
        ({"images": 0}, "nothing would be trained"),
        ({"images": -64}, "nothing would be trained"),
        ({"batch": 0}, "at least one image"),
        ({"batch": -1}, "at least one image"),
        ({"images": 64.5}, "images is a whole number"),
        ({"lr": float("nan")}, "lr is finite"),
        ({"lr": -1.0}, "lr is finite"),
        ({"momentum": 1.0}, "momentum is from 0"),
        ({"clip": 0.0}, "clip is above 0"),
        ({"clip": float("nan")}, "clip is above 0"),
    ],
)
def test_recipes_that_train_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe(**settings)


def test_a_batch_larger_than_the_data_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a batch of 64 images cannot be drawn from 48"):
        retrain(twin(), Few(), Recipe(images=64), checkpoint=tmp_path / "state")
    assert not any(tmp_path.iterdir())
