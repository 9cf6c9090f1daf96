"""Verification finds nothing where nothing is wrong, and names the first wrong stage where something is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import Device, DeviceError, LaunchReport
from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.schedule.launch import Launch
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import make_device, verify
from hw.config import Config
from tests.host.executor import Executor
from tests.host.planted import DEFECTS, PlantedDevice, planted_verilog

CONFIG = replace(CONFIGS[1], probe=True)
Make = Callable[[str, Config, int], Device]


def with_executor(name: str, config: Config, units: int) -> Device:
    if name == "executor":
        return Executor(config, units=units)
    return make_device(name, config, units)


def test_reference_and_descriptor_executor_agree_on_random_cases() -> None:
    report = verify(("reference", "executor"), cases=300, seed=2024, make=with_executor)
    assert report.ok, str(report)
    assert report.cases == 300
    assert report.faulty_cases > 100


def test_a_chosen_fault_model_is_used_in_every_case() -> None:
    report = verify(("reference", "executor"), 20, 1, faults=SoftErrors(1.0, sites=("input",)), make=with_executor)
    assert report.ok
    assert report.faulty_cases == 20


def test_cases_are_the_same_wherever_they_are_made() -> None:
    a, b = random_case(5, 17), random_case(5, 17)
    assert a.program.digest == b.program.digest
    assert a.plan == b.plan
    assert np.array_equal(a.x, b.x)
    assert str(a) == str(b)


def test_a_case_that_a_device_has_no_room_for_is_left_out_and_told() -> None:
    def make(name: str, config: Config, units: int) -> Device:
        return ReferenceDevice(config, memory_bytes=1 << (15 if name == "small" else 24), units=units)

    report = verify(("reference", "small"), cases=30, seed=4, make=make)
    assert report.ok, str(report)
    assert 0 < report.left_out < report.cases == 30
    assert f"{report.left_out} cases do not fit" in str(report)
    assert report.as_dict()["left_out"] == report.left_out
    with pytest.raises(DeviceError, match=r"small device has less memory .32768 bytes. than the reference device"):
        verify(("small", "reference"), cases=1, seed=4, make=make)


class Broken(ReferenceDevice):
    """Writes one wrong byte."""

    def launch(self, launch: Launch) -> LaunchReport:
        report = super().launch(launch)
        region = launch.memory[launch.result]
        self.write(region.address, self.read(region.address, 1) ^ 1)
        return report


class Failing(ReferenceDevice):
    """Fails in every launch."""

    def launch(self, launch: Launch) -> LaunchReport:
        raise DeviceError("it is broken")


class Scribbling(ReferenceDevice):
    """Changes a weight."""

    def launch(self, launch: Launch) -> LaunchReport:
        report = super().launch(launch)
        region = launch.memory[f"weights/{launch.layers[0]}"]
        self.write(region.address, self.read(region.address, 1) ^ 1)
        return report


@pytest.mark.parametrize(("kind", "stage"), [(Broken, "write pool"), (Failing, "launch"), (Scribbling, "memory")])
def test_a_device_without_probes_is_compared_by_its_memory(kind: type[ReferenceDevice], stage: str) -> None:
    def make(name: str, config: Config, units: int) -> Device:
        return (kind if name == "other" else ReferenceDevice)(config, memory_bytes=1 << 24, units=units)

    report = verify(("reference", "other"), cases=5, seed=1, make=make, most_mismatches=2)
    assert len(report.mismatches) == 2
    assert {m.divergence.stage for m in report.mismatches} == {stage}
    assert report.as_dict()["mismatches"] == 2
    assert stage in str(report)


@pytest.fixture(scope="module")
def verilog() -> str:
    return planted_verilog(CONFIG)


@pytest.mark.parametrize("stage", [None, *DEFECTS])
def test_a_planted_defect_is_named_by_its_stage(verilog: str, stage: str | None) -> None:
    def make(name: str, config: Config, units: int) -> Device:
        if name == "reference":
            return make_device(name, config, units)
        return PlantedDevice(replace(config, probe=True), verilog, stage, processes=units, memory_bytes=1 << 24)

    report = verify(
        ("reference", "simulation"),
        cases=40 if stage else 10,
        seed=7,
        make=make,
        configs=(replace(CONFIG, probe=False),),
        most_mismatches=1,
    )
    if stage is None:
        assert report.ok, str(report)
        return
    assert len(report.mismatches) == 1
    found = report.mismatches[0].divergence
    assert found.stage == stage, str(found)
    assert found.layer is not None
    assert None not in (found.image, found.channel, found.y, found.x, found.step, found.cycle)
    assert found.expected != found.found
    assert found.operands
