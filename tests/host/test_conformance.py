"""The conformance suite finds what is wrong with a device, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from host import cli
from host.conformance import suite
from host.conformance.suite import REDLINE, Conformance
from host.devices.device import Bytes, Device, DeviceError, Int8, LaunchReport
from host.devices.reference import ReferenceDevice
from host.faults.conditions import Conditions
from host.schedule.launch import Launch
from host.verification.overclocked import OVERCLOCKED
from hw.config import Config


def failures(kind: type[Device]) -> set[str]:
    report = suite.run("planted", lambda config: kind(config, memory_bytes=1 << 24), (REDLINE,), cases=4)  # type: ignore[call-arg]
    assert not report.ok
    return {result.check.name for result in report.failures}


class Forgetful(ReferenceDevice):
    """Loses the last byte of a long write."""

    def write(self, address: int, array: npt.NDArray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        super().write(address, raw[:-1] if len(raw) > 4096 else raw)


class Shared(ReferenceDevice):
    """Hands out its memory instead of a copy."""

    def read(self, address: int, nbytes: int) -> Bytes:
        super().read(address, nbytes)
        return self._memory[address : address + nbytes]


class Truncating(ReferenceDevice):
    """Rounds towards zero."""

    def quantise(self, x: npt.NDArray[np.floating], frac: int) -> Int8:
        return np.clip(np.trunc(np.ldexp(x, frac)), -128, 127).astype(np.int8)


class Optimist(ReferenceDevice):
    """Leaves out faults."""

    def launch(self, launch: Launch) -> LaunchReport:
        return super().launch(replace(launch, plan=None))


class Moody(ReferenceDevice):
    """Gets one byte wrong in every fourth launch."""

    launches = 0

    def launch(self, launch: Launch) -> LaunchReport:
        report = super().launch(launch)
        self.launches += 1
        if self.launches % 4 == 0:
            address = launch.memory[launch.result].address
            self.write(address, self.read(address, 1) ^ np.uint8(1))
        return report


class Careless(ReferenceDevice):
    """Answers with zeros outside its memory, and after it was closed."""

    def read(self, address: int, nbytes: int) -> Bytes:
        try:
            return super().read(address, nbytes)
        except DeviceError:
            return np.zeros(max(nbytes, 0), np.uint8)


class Curt(ReferenceDevice):
    """Refuses with an error of Python's own."""

    def write(self, address: int, array: npt.NDArray) -> None:
        try:
            super().write(address, array)
        except DeviceError as error:
            raise IndexError(str(error)) from error


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Forgetful, {"memory_keeps_what_is_written", "random_traffic_follows_a_model", "large_arrays_arrive"}),
        (Shared, {"what_is_read_is_a_copy"}),
        (Truncating, {"quantising_rounds_ties_up_and_saturates"}),
        (Optimist, {"random_plans", "every_site_is_hit_and_recovers", "every_bit_of_an_accumulator"}),
        (Moody, {"launches_repeat"}),
        (Careless, {"addresses_outside_memory", "a_closed_device"}),
        (Curt, {"addresses_outside_memory", "a_closed_device"}),
    ],
)
def test_a_defect_is_found(kind: type[Device], found: set[str]) -> None:
    assert found <= failures(kind)


def test_on_lanes_with_overclocking_a_device_must_not_leave_out_late_bits() -> None:
    class Punctual(ReferenceDevice):
        """Has stuck bits, but meets every clock."""

        def launch(self, launch: Launch) -> LaunchReport:
            plan = launch.plan
            if plan is not None and plan.conditions is not None:
                plan = plan.under(Conditions(None, plan.conditions.stuck))
            return super().launch(replace(launch, plan=plan))

    for config, found in ((REDLINE, set()), (OVERCLOCKED[1], {"conditions_are_not_ignored"})):
        report = suite.run("late", lambda of: Punctual(of, memory_bytes=1 << 24), (config,), any_build=False, cases=6)
        assert {result.check.name for result in report.failures} == found


def test_a_device_that_raises_something_else_does_not_end_the_suite() -> None:
    class Crashing(ReferenceDevice):
        def launch(self, launch: Launch) -> LaunchReport:
            raise ZeroDivisionError("boom")

    report = suite.run("crashing", lambda config: Crashing(config, memory_bytes=1 << 24), (REDLINE,), cases=2)
    assert len(report.results) == len(suite.checks())
    assert "ZeroDivisionError: boom" in next(r.note for r in report.failures if r.check.name == "programs_written_back")


def test_what_does_not_apply_is_skipped_and_said() -> None:
    plain = replace(REDLINE, saboteur=False)
    report = suite.run("plain", lambda config: ReferenceDevice(config, memory_bytes=1 << 24), (plain,), cases=2)
    assert report.ok
    skipped = {result.check.name for result in report.results if result.state == "skip"}
    assert "random_plans" in skipped
    assert report.as_dict()["skip"] == len(skipped)
    instrumented: Callable[..., Conformance] = suite.run
    fixed = instrumented("fixed", lambda config: _only(REDLINE, config), (REDLINE,), any_build=False, cases=2)
    assert [result.check.name for result in fixed.results if result.state == "skip"] == [
        "faults_without_instrumentation"
    ]


def _only(build: Config, asked: Config) -> Device:
    assert asked == build
    return ReferenceDevice(build, memory_bytes=1 << 24)


def test_the_command_prints_json_and_a_table() -> None:
    said = CliRunner().invoke(cli.app, ["conformance", "reference", "--cases", "2", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert (found["device"], found["ok"], found["fail"]) == ("reference", True, 0)
    assert found["pass"] == 2 * len(suite.checks())
    said = CliRunner().invoke(cli.app, ["conformance", "reference", "--cases", "2", "--option", "lanes=8"])
    assert "8x8" in said.output
    assert "0 failed" in said.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["fpga"], "no device 'fpga'; there are"), (["reference", "--option", "lanes"], "is not KEY=VALUE")],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    said = CliRunner().invoke(cli.app, ["conformance", *arguments])
    assert said.exit_code != 0
    assert message in " ".join(said.output.replace("│", " ").split())
