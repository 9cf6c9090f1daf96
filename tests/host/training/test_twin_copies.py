"""Copies, averages, pickles and compiled twins."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from host.compiler.limits import CompileError
from host.devices import registry
from host.devices.device import Device, DeviceError
from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.training.twin import AttachError, Twin, attach
from hw.config import Config
from tests.host.training.small import images, network

FAULTS = SoftErrors(5e-3, per="mac")
NAMES = ["reference", "emulator", pytest.param("simulation", marks=pytest.mark.slow)]


def device(name: str) -> Device:
    return registry.device(name, lanes=4, vec=4, saboteur=True, **({"processes": 1} if name == "simulation" else {}))


def twin(name: str, **options: object) -> Twin:
    return attach(network(), device(name), calibrate=images(), **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_a_network_of_its_own_on_the_same_device(name: str) -> None:
    first = twin(name, protect=["4"])
    with first.device:
        before = first(images())
        second = copy.deepcopy(first)
        assert second.device is first.device
        assert second.protected == ["4"]
        assert torch.equal(second(images()), before)
        with torch.no_grad():
            for parameter in second.net.parameters():
                parameter.mul_(0.5)
        changed = second(images())
        assert not torch.equal(changed, before)
        assert torch.equal(first(images()), before)
        assert torch.equal(second(images()), changed)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_meets_the_same_faults(name: str) -> None:
    first = twin(name)
    with first.device:
        second = copy.deepcopy(first)
        found = []
        for one in (first, second):
            with FAULTS.on(one, seed=2):
                found.append(one(images()))
        assert torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_averaged_models_average(name: str) -> None:
    made = twin(name)
    with made.device:
        average = AveragedModel(made)
        average.update_parameters(made)
        before = made(images())
        with torch.no_grad():
            for parameter in made.net.parameters():
                parameter.mul_(0.5)
        average.update_parameters(made)
        found = average.module.net.get_parameter("0.weight")
        torch.testing.assert_close(found, made.net.get_parameter("0.weight") * 1.5)
        assert not torch.equal(average(images()), before)
        assert not torch.equal(average(images()), made(images()))


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_twin_has_a_device_like_the_first(name: str, tmp_path: Path) -> None:
    made = twin(name, gradient="clean")
    with made.device:
        right = made(images())
        torch.save(made, tmp_path / "twin.pt")
        for again in (pickle.loads(pickle.dumps(made)), torch.load(tmp_path / "twin.pt", weights_only=False)):
            with again.device:
                assert again.device is not made.device
                assert (again.device.name, again.device.config) == (made.device.name, made.device.config)
                assert again.gradient == "clean"
                assert torch.equal(again(images()), right)


def test_options_of_a_device_are_pickled_with_it() -> None:
    made = registry.device("emulator", lanes=4, vec=8, units=2, threads=2, memory_bytes=1 << 24)
    again = pickle.loads(pickle.dumps(made))
    assert (again.units, again.threads, again.memory_bytes) == (2, 2, 1 << 24)
    again.close()
    made.close()


def test_a_device_that_nobody_knows_how_to_make_is_not_pickled() -> None:
    with pytest.raises(DeviceError, match=r"was not made by redline.device\(\)"):
        pickle.dumps(ReferenceDevice(Config(lanes=4, vec=4)))


def test_a_twin_is_not_copied_while_faults_are_on() -> None:
    made = twin("reference")
    with FAULTS.on(made, seed=1), pytest.raises(AttachError, match=r"leave the context first, or copy twin.net"):
        copy.deepcopy(made)
    copy.deepcopy(made)


def test_what_was_changed_before_copying_is_noticed_in_the_copy() -> None:
    made = twin("reference")
    made.net[1] = nn.Identity()
    with pytest.raises(CompileError, match="changed after it was attached"):
        copy.deepcopy(made)(images())


@pytest.mark.slow  # loads PyTorch's compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # it looks itself
@pytest.mark.parametrize("name", ["reference", "emulator"])
def test_compiled_twins_and_networks_around_twins(name: str) -> None:
    made = twin(name)
    right = made(images())
    assert torch.equal(torch.compile(made, backend="eager")(images()), right)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = made, nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.inner(x * 1.0) * 2)

    around = Around().train()
    compiled = torch.compile(around, backend="eager")
    assert torch.equal(compiled(images()), around(images()))
    gradients = []
    for one in (compiled, around):
        one.zero_grad()
        one(images()).square().sum().backward()
        gradients.append(made.net.get_parameter("0.weight").grad)
    assert torch.equal(*gradients)
