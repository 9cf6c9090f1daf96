"""Redline's own devices keep the device contract: each runs through the suite of the product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from host.conformance.suite import PIPECNN, REDLINE, Bench, Check, checks
from host.devices.device import Device
from host.verification.overclocked import OVERCLOCKED
from host.verification.verify import make_device, verify
from hw.config import Config
from tests.host.executor import Executor
from tests.host.opencl import needs_opencl

LATE = OVERCLOCKED[1]
DEVICES = [
    pytest.param(("reference", REDLINE), id="reference"),
    pytest.param(("reference", PIPECNN), id="reference-pipecnn"),
    pytest.param(("emulator", REDLINE), id="emulator"),
    pytest.param(("emulator", PIPECNN), id="emulator-pipecnn"),
    pytest.param(("simulation", REDLINE), id="simulation"),
    pytest.param(("executor", REDLINE), id="executor"),
    pytest.param(("opencl", REDLINE), id="opencl", marks=needs_opencl),
    pytest.param(("opencl", PIPECNN), id="opencl-pipecnn", marks=needs_opencl),
    # Lanes whose bits may be late or stuck.
    pytest.param(("reference", LATE), id="reference-overclock"),
    pytest.param(("emulator", LATE), id="emulator-overclock"),
    pytest.param(("simulation", LATE), id="simulation-overclock", marks=pytest.mark.slow),
    pytest.param(("opencl", LATE), id="opencl-overclock", marks=needs_opencl),
    # A board in simulation: what it takes is its serial line, a bit at a time.
    pytest.param(("serial", REDLINE), id="serial", marks=pytest.mark.slow),
    pytest.param(("serial", PIPECNN), id="serial-pipecnn", marks=pytest.mark.slow),
]


def make(name: str, config: Config) -> Device:
    return Executor(config, units=2) if name == "executor" else make_device(name, config, 2)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    name, config = request.param
    made = Bench(lambda of: make(name, of), config)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("bench", "one"),
    [
        pytest.param(*device.values, one, id=f"{device.id}-{one.name}", marks=device.marks)
        for device in DEVICES
        for one in checks()
        # The tests' own interpreter of descriptors does what descriptors say, and refuses nothing else.
        if device.id != "executor" or one.group != "refusals"
    ],
    indirect=["bench"],
)
def test_it_keeps_the_contract(bench: Bench, one: Check) -> None:
    one.run(bench)


@pytest.mark.slow
def test_reference_and_simulation_agree_on_many_random_cases() -> None:
    report = verify(("reference", "simulation"), cases=200, seed=20_260)
    assert report.ok, str(report)


@needs_opencl
def test_reference_and_opencl_agree_on_many_random_cases() -> None:
    report = verify(("reference", "opencl"), cases=100, seed=20_261)
    assert report.cases == 100
    assert report.ok, str(report)
