"""The device contract, as a suite: add a device to `DEVICES` to learn whether it keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import Device, DeviceError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.plan import SITES
from host.program.program import Program
from host.verification.cases import CONFIGS, random_case, random_program
from host.verification.verify import make_device, verify
from tests.host.executor import Executor

CONFIG = CONFIGS[1]
DEVICES = ("reference", "emulator", "executor", "simulation")


def make(name: str) -> Device:
    return Executor(CONFIG, units=2) if name == "executor" else make_device(name, CONFIG, 2)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    with make(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(np.random.default_rng(27), CONFIG)


def images(program: Program, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (count, *program.input_shape)).astype(np.int8)


def test_it_says_what_it_is(device: Device) -> None:
    assert device.name
    assert device.config == CONFIG
    assert device.units >= 1
    assert device.memory_bytes > 0


@pytest.mark.parametrize("address", [0, 1, 63, 4095, 4097, 1 << 20])
@pytest.mark.parametrize("nbytes", [0, 1, 7, 64, 5000])
def test_memory_keeps_what_is_written_and_nothing_else_changes(device: Device, address: int, nbytes: int) -> None:
    rng = np.random.default_rng(address + nbytes)
    low = max(0, address - 16)
    before = device.read(low, nbytes + 32 + address - low)
    content = rng.integers(0, 256, nbytes).astype(np.uint8)
    device.write(address, content)
    after = device.read(low, nbytes + 32 + address - low)
    expected = before.copy()
    expected[address - low : address - low + nbytes] = content
    assert np.array_equal(after, expected)
    assert after.dtype == np.uint8


def test_any_array_is_written_as_its_bytes(device: Device) -> None:
    for array in (np.arange(12, dtype=np.int8).reshape(3, 4)[:, ::2], np.arange(5, dtype="<i4"), np.ones((), "<u2")):
        device.write(256, array)
        assert device.read(256, array.nbytes).tobytes() == array.tobytes()


def test_what_is_read_is_a_copy(device: Device) -> None:
    device.write(0, np.zeros(8, np.uint8))
    device.read(0, 8)[:] = 1
    assert not device.read(0, 8).any()


def test_quantising_rounds_ties_up_and_saturates(device: Device) -> None:
    x = np.array([0.5, -0.5, 0.25, -0.25, 100.0, -100.0, -64.25], np.float32)
    assert device.quantise(x, 1).tolist() == [1, -1, 1, 0, 127, -128, -128]
    assert device.dequantise(np.array([-128, -1, 0, 127], np.int8), 1).tolist() == [-64.0, -0.5, 0.0, 63.5]


def test_reordering_is_undone_by_recovering(device: Device) -> None:
    x = np.random.default_rng(1).integers(-128, 128, (2, 11, 3, 5)).astype(np.int8)
    assert np.array_equal(device.recover(device.reorder(x), 11), x)


@pytest.mark.parametrize("number", range(12))
def test_it_computes_what_the_reference_does(device: Device, number: int) -> None:
    case = random_case(99, number, configs=(CONFIG,))
    wanted = Runtime(case.program, ReferenceDevice(CONFIG)).forward(
        case.x, plan=case.plan, first_image=case.first_image
    )
    found = Runtime(case.program, device).forward(case.x, plan=case.plan, first_image=case.first_image)
    for name in case.program.names:
        assert np.array_equal(found.conv[name], wanted.conv[name])
        assert np.array_equal(found.out[name], wanted.out[name])
    assert found.report.faults_applied == wanted.report.faults_applied


def test_writing_back_or_not_gives_the_same_result(device: Device, program: Program) -> None:
    x, last = images(program, 5), program.names[-1]
    runtime = Runtime(program, device)
    assert np.array_equal(runtime.forward(x, writeback=False).out[last], runtime.forward(x, writeback=True).out[last])


def test_batches_and_units_do_not_matter(device: Device, program: Program) -> None:
    x, last = images(program, 7), program.names[-1]
    whole = Runtime(program, device).forward(x).out[last]
    assert np.array_equal(Runtime(program, device, units=1).forward(x).out[last], whole)
    parts = [Runtime(program, device).forward(x[at : at + 3]).out[last] for at in range(0, 7, 3)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("site", SITES)
def test_faults_of_every_site_leave_no_trace_afterwards(device: Device, program: Program, site: str) -> None:
    x = images(program, 3)
    runtime = Runtime(program, device)
    clean = runtime.forward(x)
    model = SoftErrors(0.02, per="mac" if site == "mac" else "bit", sites=(site,))
    plan = model.draw(program, 0, 3, 5)
    faulty = runtime.forward(x, plan=plan)
    again = runtime.forward(x, plan=plan)
    after = runtime.forward(x)
    assert len(plan) > 0
    assert any(not np.array_equal(faulty.out[name], clean.out[name]) for name in program.names)
    for name in program.names:
        assert np.array_equal(faulty.out[name], again.out[name])
        assert np.array_equal(after.out[name], clean.out[name])


def test_programs_of_another_accelerator_are_refused(device: Device, program: Program) -> None:
    other = replace(program, config=replace(CONFIG, pool_columns=CONFIG.pool_columns * 2))
    with pytest.raises(DeviceError, match="another accelerator"):
        Runtime(other, device)


@pytest.mark.slow
def test_reference_and_simulation_agree_on_many_random_cases() -> None:
    report = verify(("reference", "simulation"), cases=200, seed=20_260)
    assert report.ok, str(report)
