"""The microscope counts what is wrong, and where it is made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from host.devices.reference import ReferenceDevice
from host.faults.models import Replay, SoftErrors
from host.faults.overclock import Overclock
from host.faults.plan import EVERY_IMAGE, SITES, FaultPlan
from host.faults.stuck import StuckAt
from host.models import lenet5
from host.training.microscope import _Count, layer_errors
from host.training.twin import AttachError, Twin, attach
from hw.config import Config
from tests.hw.tables import random_table

CONFIG = Config(lanes=8, vec=8)
WORDS = {"conv1": 6 * 28 * 28, "conv2": 16 * 10 * 10, "fc1": 120, "fc2": 84, "fc3": 10}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def twin(images: torch.Tensor) -> Twin:
    return attach(lenet5(pretrained=True), ReferenceDevice(CONFIG), calibrate=images)


def test_one_flip_is_one_wrong_word_of_its_layer_and_bit(twin: Twin, images: torch.Tensor) -> None:
    last = 24  # conv2's 25 steps: what is flipped after the last stays as it is
    plan = FaultPlan.of(twin.program.names, 1, 1, SITES.index("mac"), 37, last, 31)
    found = {errors.layer: errors for errors in layer_errors(twin, Replay(plan), images)}
    assert {name: errors.output.words for name, errors in found.items()} == {n: 3 * w for n, w in WORDS.items()}
    for name, errors in found.items():
        assert errors.accumulator.wrong == (name == "conv2"), name
        assert errors.output.wrong == (name == "conv2"), name
    conv2 = found["conv2"]
    assert conv2.accumulator.magnitude == 2**31
    assert [at for at, count in enumerate(conv2.accumulator.bits) if count] == [31]
    assert conv2.accumulator.rate.successes == 1
    assert conv2.accumulator.rate.trials == 3 * WORDS["conv2"]


def test_flips_of_stored_bits_count_in_the_layer_that_reads_them(twin: Twin, images: torch.Tensor) -> None:
    plan = FaultPlan.of(twin.program.names, EVERY_IMAGE, 2, SITES.index("weight"), 5, 0, 6)
    plan = plan + FaultPlan.of(twin.program.names, 0, 0, SITES.index("input"), 5 * 28 * 28 // 2, 0, 7)
    found = {errors.layer: errors for errors in layer_errors(twin, Replay(plan), images)}
    assert found["fc1"].accumulator.wrong <= 3  # one output's weight
    assert found["conv2"].accumulator.wrong == found["fc2"].accumulator.wrong == 0


def test_overclocking_shows_in_accumulators_first_and_grows(twin: Twin, images: torch.Tensor) -> None:
    table = random_table(5, CONFIG)
    rates = []
    for share in (1.0, 0.85, 0.7):
        fault = Overclock(table=table, period_ns=share * table.onset_ps / 1000, beyond_model=True)
        found = layer_errors(twin, fault, images)
        assert all(errors.output.wrong <= errors.accumulator.wrong for errors in found)
        rates.append(sum(errors.accumulator.wrong for errors in found))
        for errors in found:
            assert sum(errors.accumulator.bits) >= errors.accumulator.wrong
            assert (errors.accumulator.magnitude > 0) == (errors.accumulator.wrong > 0)
    assert rates[0] == 0 < rates[1] < rates[2]


def test_what_it_counts_is_what_the_network_computes(twin: Twin, images: torch.Tensor) -> None:
    fault = StuckAt(2, 3, 1) + SoftErrors(1e-4, per="mac")
    found = {errors.layer: errors for errors in layer_errors(twin, fault, images, seed=3)}
    quantised = twin.program.quantise_input(images)
    clean = twin.runtime.forward(quantised)
    faulty = twin.runtime.forward(quantised, plan=fault.draw(twin.program, 0, 3, 3))
    # The first layer's input is the same in both.
    assert found["conv1"].output.wrong == np.count_nonzero(clean.conv["conv1"] != faulty.conv["conv1"])


def test_layers_on_the_cpu_are_left_out(twin: Twin, images: torch.Tensor) -> None:
    twin.protect(["conv2"])
    try:
        names = [errors.layer for errors in layer_errors(twin, StuckAt(0, 9, 1), images)]
    finally:
        twin.protect([])
    assert names == ["conv1", "fc1", "fc2", "fc3"]


def test_no_images_are_refused(twin: Twin, images: torch.Tensor) -> None:
    with pytest.raises(AttachError, match="at least one image"):
        layer_errors(twin, StuckAt(0, 9, 1), images[:0])


SMALL = Config(lanes=4, vec=4, port_bits=32, saboteur=True)


class TwoReaders(nn.Module):
    """Two layers read the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.f = nn.Linear(4 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(torch.flatten(torch.relu(self.a(x) + self.b(x)), 1))


@pytest.mark.parametrize("protect", [[], ["b"], ["f"]], ids=str)
def test_a_flip_in_the_input_counts_in_every_layer_that_reads_it(protect: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, 6, 6)
    twin = attach(
        TwoReaders().eval(), ReferenceDevice(Config(lanes=4, vec=4, port_bits=32, saboteur=True)), calibrate=x
    )
    twin.protect(protect)
    found = {errors.layer: errors for errors in layer_errors(twin, SoftErrors(0.02, sites=("input",)), x)}
    readers = {"a", "b"} - set(protect)
    assert set(found) == {"a", "b", "add", "f"} - set(protect)
    for name, errors in found.items():
        assert (errors.accumulator.wrong > 0) == (errors.output.wrong > 0) == (name in readers), name
        # What an accumulator holds is all that its output is made of.
        assert errors.output.wrong <= errors.accumulator.wrong


def test_no_input_is_stored_where_the_first_layer_is_on_the_cpu() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, 6, 6)
    twin = attach(
        TwoReaders().eval(), ReferenceDevice(Config(lanes=4, vec=4, port_bits=32, saboteur=True)), calibrate=x
    )
    twin.protect(["a"])
    clean = twin(x)
    faults = SoftErrors(0.02, sites=("input",)) + SoftErrors(1e-12, sites=("feature",))
    plan = faults.draw(twin.program, 0, len(x), 0)
    assert len(plan.at(0, "input"))
    outputs = twin.runtime.forward(twin.program.quantise_input(x), plan=plan).out[twin.layers[-1]]
    assert torch.equal(torch.from_numpy(outputs).float().reshape(16, 5) * 2.0**-twin.program.out_frac, clean)


def test_magnitudes_of_errors_in_both_directions_do_not_cancel() -> None:
    count = _Count(8)
    count.add(np.array([5, -3, 7, 7], np.int8), np.array([1, 1, 7, 8], np.int8))
    found = count.result()
    # |5 - 1|, |-3 - 1| and |7 - 8|; bits of 5 ^ 1 = 100, -3 ^ 1 = 1111_1100 and 7 ^ 8 = 1111.
    assert (found.words, found.wrong, found.magnitude) == (4, 3, 3.0)
    assert found.bits == (1, 1, 3, 2, 1, 1, 1, 1)


def test_a_layer_on_the_cpu_reads_the_flipped_input_too() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, 6, 6)
    twin = attach(TwoReaders().eval(), ReferenceDevice(SMALL), calibrate=x)
    clean, found = twin(x), []
    for protect in ([], ["b"], ["b", "add", "f"]):
        twin.protect(protect)
        with SoftErrors(0.02, sites=("input",)).on(twin, seed=3):
            found.append(twin(x))
    assert not torch.equal(found[0], clean)
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])
