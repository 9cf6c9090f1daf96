"""Saturation is counted and said, and ranges are chosen anew when asked."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host import models
from host.compiler.limits import CompileError
from host.datasets import data
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.program.program import ProgramError
from host.training.saturation import Recalibration, RecalibrationError, Recalibrator
from host.training.train import Recipe, evaluate, retrain
from host.training.twin import Twin, attach
from hw.config import Config
from tests.host.training.small import Few, images, network

CONFIG = Config(lanes=4, vec=4, saboteur=True)


def twin(net: nn.Module | None = None, **options: object) -> Twin:
    return attach(net or network(), ReferenceDevice(CONFIG), calibrate=images(), **options)  # type: ignore[arg-type]


def grow(made: Twin, factor: float, layer: str = "6") -> None:
    with torch.no_grad():
        for parameter in made.net.get_submodule(layer).parameters():
            parameter.mul_(factor)


@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_outputs_are_counted_in_both_directions(sign: int) -> None:
    made = twin()
    with torch.no_grad():
        made.net[6].bias[:2] += sign * 1e3
    made.train()(images(10))
    found = made.saturation
    assert list(found) == ["0", "4", "6"]
    assert (found["6"].outputs, found["6"].high, found["6"].low) == (30, 20 * (sign > 0), 20 * (sign < 0))
    assert found["6"].share == pytest.approx(2 / 3)
    assert "6: 66.7 % of its outputs saturate" in str(found["6"])


def test_counts_are_those_of_the_outputs_that_were_written_back() -> None:
    made = twin()
    grow(made, 3, "0")
    outputs = made.run(made.program.quantise_input(images()), writeback=True)
    assert made.saturation["0"].high == np.count_nonzero(outputs.conv["0"] == 127) > 0


def test_what_a_relu_clamps_is_no_saturation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias.fill_(5.5)
    made = twin(net)
    with torch.no_grad():
        net[0].bias.fill_(100.0)
        net[2].bias.fill_(-1e3)
    made.train()(images())
    assert [(one.low, one.high) for one in made.saturation.values()] == [(0, 0), (0, 0)]


def test_weights_at_the_end_of_their_range_are_counted() -> None:
    made = twin()
    assert made.train()(images()).isfinite().all()
    assert made.saturation["4"].clipped_share < 0.05
    grow(made, 100, "4")
    made(images())
    assert made.saturation["4"].clipped_share > 0.5


def test_in_evaluation_mode_the_last_layer_is_counted() -> None:
    made = twin().eval()
    assert made.saturation == {}
    grow(made, 100)
    made(images())
    assert made.saturation["6"].share > 0.5


def test_what_saturates_is_said_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    made = twin().train()
    with caplog.at_level(logging.WARNING, "redline.training"):
        made(images())
        assert not caplog.records
        grow(made, 100)
        for _ in range(70):
            made(images())
    (record,) = caplog.records
    assert record.message.startswith("6: ")
    assert "choose it anew with twin.recalibrate(images)" in record.message


def test_faults_that_saturate_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = twin().train()
    with caplog.at_level(logging.WARNING, "redline.training"), SoftErrors(0.2, per="mac").on(made, seed=0):
        for _ in range(3):
            made(images())
    assert not caplog.records


# ---- recalibration


@pytest.mark.parametrize("layer", ["0", "4", "6"])
@pytest.mark.parametrize("options", [{}, {"per_channel": True}, {"protect": ["4"]}])
def test_recalibrating_is_attaching_anew(layer: str, options: dict[str, object]) -> None:
    made = twin(**options)
    grow(made, 20, layer)
    assert layer in made.recalibrate(images())
    again = twin(made.net, **options)
    made.refresh()
    assert made.program.digest == again.program.digest
    assert torch.equal(made.eval()(images()), again.eval()(images()))
    assert made.protected == again.protected


def test_recalibrating_what_fits_changes_nothing() -> None:
    made = twin()
    program = made.program
    assert made.recalibrate(images()) == []
    assert made.program is program


def test_recalibrating_lets_values_show_that_saturated() -> None:
    made = twin().eval()
    grow(made, 50)
    wanted = made.net.eval()(images())
    assert (made(images()) - wanted).abs().max() > wanted.abs().max() / 2
    made.recalibrate(images())
    assert (made(images()) - wanted).abs().max() < wanted.abs().max() / 20


def test_recalibrating_within_a_fault_context_goes_on_with_its_faults() -> None:
    made = twin().eval()
    grow(made, 20)
    with SoftErrors(5e-3, per="mac").on(made, seed=1):
        made(images())
        made.recalibrate(images())
        found = made(images())
        assert made.image_number == 32
    with made.faulty(SoftErrors(5e-3, per="mac"), seed=1, first_image=16):
        assert torch.equal(made(images()), found)


def test_images_that_do_not_fit_and_networks_that_changed_are_refused() -> None:
    made = twin()
    before = made.program
    for wrong in (torch.rand(4, 1, 9, 9), torch.rand(4, 8, 8), torch.zeros(0, 1, 8, 8), "images"):
        with pytest.raises((ProgramError, CompileError)):
            made.recalibrate(wrong)
    made.net[1] = nn.Identity()
    with pytest.raises(CompileError, match="changed after it was attached"):
        made.recalibrate(images())
    assert made.program is before


def loop(made: Twin, when: Recalibration, steps: int, growing: float = 1.0) -> list[int]:
    """Steps after which ranges were chosen anew, in a loop of one's own."""
    keeper, found = Recalibrator(made, images(), when), []
    made.train()
    for step in range(1, steps + 1):
        made(images())
        grow(made, growing)
        if keeper.step():
            found.append(step)
    return found


def test_a_loop_of_ones_own_recalibrates_every_n_steps() -> None:
    assert loop(twin(), Recalibration(every=4, share=None), 13, growing=1.5) == [4, 8, 12]


def test_a_loop_of_ones_own_recalibrates_where_a_share_is_passed() -> None:
    found = loop(twin(), Recalibration(share=0.2, check=2), 16, growing=1.3)
    assert found
    assert all(step % 2 == 0 for step in found)
    assert loop(twin(), Recalibration(share=0.2, check=2), 16) == []


def test_weights_alone_make_it_time_too() -> None:
    made = twin().train()
    grow(made, 100, "4")
    grow(made, 0.01, "6")
    made(images())
    assert Recalibration(share=0.1, check=1).due(1, made)


@pytest.mark.parametrize(
    "settings", [{"share": None}, {"share": 1.0}, {"share": -0.1}, {"every": 0}, {"check": 0}, {"images": 0}]
)
def test_rules_that_cannot_be_followed_are_refused(settings: dict[str, float | None]) -> None:
    with pytest.raises(RecalibrationError):
        Recalibration(**settings)  # type: ignore[arg-type]


def test_retraining_says_when_it_recalibrates_and_none_keeps_the_ranges() -> None:
    said: list[str] = []
    recipe = Recipe(images=8 * 30, batch=8, lr=0.5)

    def narrow() -> Twin:
        net = network()
        with torch.no_grad():
            net[6].weight.mul_(0.02)
            net[6].bias.zero_()
        return twin(net)

    made, when = narrow(), Recalibration(every=20, share=None)
    retrain(made, Few(), recipe, recalibrate=when, progress=lambda *a: said.append(a[2]))
    assert [at + 1 for at, note in enumerate(said) if "ranges chosen anew: " in note] == [20]
    fixed = narrow()
    before = fixed.program.layers
    retrain(fixed, Few(), recipe, recalibrate=None)
    assert fixed.program.layers == before
    assert made.program.layers != before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_lenet_trained_on_its_twin_is_as_good_as_in_float(seed: int) -> None:
    train, test = data.load("fashion-mnist", "train"), data.load("fashion-mnist", "test")
    recipe = Recipe(images=65_536, lr=0.05, seed=seed)
    torch.manual_seed(seed)
    net = models.lenet5()
    control = copy.deepcopy(net).train()
    optimiser = torch.optim.SGD(control.parameters(), recipe.lr, momentum=recipe.momentum)
    for step in range(recipe.steps):
        x, y = train.batch(recipe.order(step, len(train)))
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        loss = F.cross_entropy(control(x), y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(control.parameters(), recipe.clip)
        optimiser.step()
    with torch.no_grad():
        wanted = float((control.eval()(test.pixels).argmax(1) == test.labels).float().mean())
    made = attach(net, EmulatorDevice(Config(lanes=16, vec=8)), calibrate=train.head(512).pixels)
    retrain(made, train, recipe)
    found = evaluate(made, test).accuracy
    assert found > wanted - 0.015, f"{found:.4f} against {wanted:.4f}"
