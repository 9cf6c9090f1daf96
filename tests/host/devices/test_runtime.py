"""The runtime: writes what changed, restores what it flipped, and never trusts memory after a failure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.devices.device import Device, DeviceError, LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.registry import device, device_names
from host.devices.runtime import Runtime
from host.faults import canary
from host.faults.canary import CanaryError
from host.faults.models import SoftErrors
from host.faults.plan import FaultPlan, PlanError
from host.models import lenet5
from host.program.integer import run_layer
from host.program.program import Program, ProgramError
from host.schedule.launch import Launch
from hw.config import Config, ConfigError


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(), calibrate=torch.rand(4, 1, 28, 28))


@pytest.fixture
def x() -> npt.NDArray[np.int8]:
    return np.random.default_rng(0).integers(-128, 128, (6, 1, 28, 28)).astype(np.int8)


class Counting(ReferenceDevice):
    """Counts writes by address; fails when asked to."""

    def __init__(self, **options: int) -> None:
        super().__init__(Config(), **options)
        self.writes: list[int] = []
        self.fail = self._launching = False

    def write(self, address: int, array: npt.NDArray) -> None:
        if not self._launching:
            self.writes.append(address)
        super().write(address, array)

    def launch(self, launch: Launch) -> LaunchReport:
        if self.fail:
            self._memory[:] = 0x5A  # undefined, as the contract says
            raise DeviceError("the cable was pulled")
        self._launching = True
        report = super().launch(launch)
        self._launching = False
        return report


def expected(program: Program, x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    value = program.fold_input(x)
    for layer in program.layers:
        value = run_layer(value, program.weights[layer.name], program.biases[layer.name], layer).out
    return value


def test_only_changed_weights_are_written(program: Program, x: npt.NDArray[np.int8]) -> None:
    machine = Counting()
    runtime = Runtime(program, machine)
    runtime.forward(x)
    assert len(machine.writes) == 11  # five layers' weights and parameters, and the input
    machine.writes.clear()
    runtime.forward(x)
    assert len(machine.writes) == 1
    machine.writes.clear()
    program.requantise("fc2", np.ones((84, 120)) * 0.01, None)
    assert np.array_equal(runtime.forward(x).out["fc3"], expected(program, x))
    assert len(machine.writes) == 3
    machine.writes.clear()
    weight = program.weights["fc3"] = program.weights["fc3"].copy()
    runtime.forward(x)
    assert len(machine.writes) == 1
    machine.writes.clear()
    weight[0, 0] ^= 1  # in place: found by content
    assert np.array_equal(runtime.forward(x).out["fc3"], expected(program, x))
    assert len(machine.writes) == 2


@pytest.mark.parametrize("writeback", [False, True])
def test_every_placement_gives_the_same_integers(program: Program, x: npt.NDArray[np.int8], writeback: bool) -> None:
    wanted = expected(program, x)
    for cpu in ([], ["conv1"], ["fc3"], ["conv2", "fc2"], list(program.names)):
        placed = program.with_placement(cpu)
        outputs = Runtime(placed, ReferenceDevice(units=2)).forward(x, writeback=writeback)
        assert np.array_equal(outputs.out["fc3"], wanted)
        if writeback:
            assert set(outputs.out) == set(outputs.conv) == set(program.names)


def test_weights_are_restored_after_faults(program: Program, x: npt.NDArray[np.int8]) -> None:
    runtime = Runtime(program, ReferenceDevice())
    clean = runtime.forward(x).out["fc3"]
    plan = SoftErrors(1e-2, sites=("weight", "input")).draw(program, 0, len(x), 1)
    assert not np.array_equal(runtime.forward(x, plan=plan).out["fc3"], clean)
    assert np.array_equal(runtime.forward(x).out["fc3"], clean)


def test_plans_follow_the_images_across_batches(program: Program, x: npt.NDArray[np.int8]) -> None:
    plan = (SoftErrors(1e-3) + SoftErrors(1e-4, per="mac")).draw(program, 100, 6, 1)
    runtime = Runtime(program, ReferenceDevice())
    whole = runtime.forward(x, plan=plan, first_image=100)
    for size in (1, 2, 4):
        parts = [
            runtime.forward(x[at : at + size], plan=plan, first_image=100 + at).out["fc3"] for at in range(0, 6, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole.out["fc3"])


def test_batches_that_exceed_device_memory_are_split(program: Program, x: npt.NDArray[np.int8]) -> None:
    plan = SoftErrors(1e-4, per="mac").draw(program, 0, 6, 1)
    wanted = Runtime(program, ReferenceDevice()).forward(x, plan=plan)
    # Room for the weights, and for the tensors of two images or so.
    small = ReferenceDevice(memory_bytes=160_000)
    found = Runtime(program, small).forward(x, plan=plan)
    for name in program.names:
        assert np.array_equal(found.out[name], wanted.out[name])
        assert np.array_equal(found.conv[name], wanted.conv[name])
    with pytest.raises(DeviceError, match="bytes of device memory"):
        Runtime(program, ReferenceDevice(memory_bytes=80_000)).forward(x)


def test_everything_is_written_again_after_a_failure(program: Program, x: npt.NDArray[np.int8]) -> None:
    machine = Counting()
    runtime = Runtime(program, machine)
    clean = runtime.forward(x).out["fc3"]
    machine.fail = True
    with pytest.raises(DeviceError, match="the cable was pulled"):
        runtime.forward(x)
    machine.fail = False
    machine.writes.clear()
    assert np.array_equal(runtime.forward(x).out["fc3"], clean)
    assert len(machine.writes) == 11


def test_interrupting_a_faulty_launch_leaves_no_fault_behind(program: Program, x: npt.NDArray[np.int8]) -> None:
    machine = Counting()
    runtime = Runtime(program, machine)
    clean = runtime.forward(x).out["fc3"]
    plan = SoftErrors(1e-2, sites=("weight",)).draw(program, 0, 6, 1)
    original = machine.launch

    def interrupted(launch: Launch) -> LaunchReport:
        original(launch)
        raise KeyboardInterrupt

    machine.launch = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        runtime.forward(x, plan=plan)
    machine.launch = original  # type: ignore[method-assign]
    assert np.array_equal(runtime.forward(x).out["fc3"], clean)


def test_two_programs_can_share_a_device(program: Program, x: npt.NDArray[np.int8]) -> None:
    other = program.with_placement([])
    other.requantise("conv1", np.ones((6, 1, 5, 5)) * 0.1)
    machine = ReferenceDevice()
    a, b = Runtime(program, machine), Runtime(other, machine)
    for _ in range(2):
        assert np.array_equal(a.forward(x).out["fc3"], expected(program, x))
        assert np.array_equal(b.forward(x).out["fc3"], expected(other, x))


def test_a_device_of_another_build_is_refused(program: Program) -> None:
    with pytest.raises(DeviceError, match=r"another accelerator .*vec 8 against 16.*compile with config=device.config"):
        Runtime(program, ReferenceDevice(Config(vec=16)))
    Runtime(program, ReferenceDevice(Config(probe=True)))


def test_images_of_another_kind_are_refused(program: Program, x: npt.NDArray[np.int8]) -> None:
    runtime = Runtime(program, ReferenceDevice())
    with pytest.raises(ProgramError, match="wrong image size"):
        runtime.forward(x[:, :, :20])
    with pytest.raises(ProgramError, match="takes int8 images"):
        runtime.forward(x.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="at least one image"):
        runtime.forward(x[:0])
    with pytest.raises(PlanError, match="drawn for layers"):
        runtime.forward(x, plan=FaultPlan.of(("a",)))


def test_addresses_outside_the_reference_device_are_refused() -> None:
    machine = ReferenceDevice(memory_bytes=1024)
    for action in (lambda: machine.write(1020, np.zeros(5, np.uint8)), lambda: machine.read(-1, 2)):
        with pytest.raises(DeviceError, match=r"outside device memory \(1024 bytes\)"):
            action()


# -- canary


class Deaf(ReferenceDevice):
    """Ignores accumulator and feature faults, as a build without saboteurs would."""

    def launch(self, launch: Launch) -> LaunchReport:
        return super().launch(replace(launch, plan=None))


class Confused(ReferenceDevice):
    """Hits something else than it was told."""

    def launch(self, launch: Launch) -> LaunchReport:
        plan = launch.plan
        if plan is not None and len(plan):
            outputs = (plan.output + 1) % 2
            plan = FaultPlan.of(
                plan.layers, plan.image, plan.layer, plan.site, outputs, np.maximum(plan.step - 1, 0), plan.bit
            )
        return super().launch(replace(launch, plan=plan))


def test_the_canary_is_content_where_faults_arrive(program: Program, x: npt.NDArray[np.int8]) -> None:
    runtime = Runtime(program, ReferenceDevice())
    before = runtime.forward(x).out["fc3"]
    canary.check(runtime, x, ("weight", "input", "feature", "mac"))
    canary.check(runtime)
    assert np.array_equal(runtime.forward(x).out["fc3"], before)


def test_an_invisible_canary_stops_the_run(program: Program, x: npt.NDArray[np.int8]) -> None:
    for site in ("mac", "feature"):
        with pytest.raises(CanaryError, match=f"the canary is invisible: a {site} fault in layer .*saboteur=True"):
            canary.check(Runtime(program, Deaf()), x, (site,))


def test_a_fault_that_lands_elsewhere_stops_the_run(program: Program, x: npt.NDArray[np.int8]) -> None:
    with pytest.raises(CanaryError, match="other results on the reference device|canary is invisible"):
        canary.check(Runtime(program, Confused()), x, ("mac",))


def test_a_network_that_hides_every_fault_is_named(program: Program, x: npt.NDArray[np.int8]) -> None:
    for name in program.names:
        program.weights[name] = np.zeros_like(program.weights[name])
        program.biases[name] = np.full_like(program.biases[name], 2**30)
    with pytest.raises(CanaryError, match="no visible weight fault found"):
        canary.check(Runtime(program, ReferenceDevice()), x, ("weight",))


def test_a_fully_protected_network_needs_no_canary(program: Program, x: npt.NDArray[np.int8]) -> None:
    canary.check(Runtime(program.with_placement(program.names), Deaf()), x, ("mac", "input"))
    canary.check(Runtime(program.with_placement(["conv1"]), ReferenceDevice()), x, ("input",))


# -- devices by name


def test_devices_are_made_by_name_with_the_accelerators_parameters() -> None:
    made = device("reference", lanes=8, vec=4, port_bits=64, units=3)
    assert isinstance(made, Device)
    assert (made.config.lanes, made.config.vec, made.units, made.name) == (8, 4, 3, "reference")
    assert device("reference", Config(vec=16)).config.vec == 16
    assert {"reference", "simulation"} <= set(device_names())


def test_unknown_devices_and_parameters_are_refused() -> None:
    with pytest.raises(DeviceError, match="no device 'fpga9'; there are .*reference.*simulation"):
        device("fpga9")
    with pytest.raises(DeviceError, match="either config= or its parameters"):
        device("reference", Config(), lanes=8)
    with pytest.raises(ConfigError, match="lanes must be a power of two"):
        device("reference", lanes=7)
