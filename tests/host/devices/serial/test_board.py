"""The serial device on a simulated board: its gateware, behind a pseudo-terminal, on cables good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from host import models
from host.boards.memory import on_chip
from host.compiler.compile import compile as compiled
from host.conformance.launches import compare
from host.conformance.suite import REDLINE
from host.devices.device import DeviceError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.serial.device import SerialDevice
from host.devices.serial.port import LineLost
from host.schedule.performance import predict
from host.verification.cases import random_case
from host.verification.verify import verify
from hw.boards.catalogue import BOARDS
from hw.registers import OFFSET
from sim.board import SimulatedBoard
from tests.host.devices.serial.cable import Cable
from tests.sim.fixtures.processes import alive, footprint

pytestmark = pytest.mark.slow

MEMORY = 1 << 17


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    made = SimulatedBoard(REDLINE, MEMORY)
    yield made
    made.close()


def device(port: str, **options: Any) -> SerialDevice:
    return SerialDevice(REDLINE, port=port, **{"timeout_s": 2.0, **options})


def content(nbytes: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, nbytes).astype(np.uint8)


NOISE = [
    pytest.param({"frames": 0.001}, id="1 frame in 1000"),
    pytest.param({"frames": 0.05}, id="1 frame in 20"),
    pytest.param({"lost": 0.0005}, id="1 byte in 2000 lost"),
    pytest.param({"added": 0.0005}, id="1 byte in 2000 added"),
]


@pytest.mark.parametrize("noise", NOISE)
def test_nothing_is_wrong_on_a_bad_line(board: SimulatedBoard, noise: dict[str, float]) -> None:
    with (
        Cable(board.path, seed=3, **noise) as cable,
        device(cable.path) as serial,
        ReferenceDevice(REDLINE, memory_bytes=1 << 24) as oracle,
    ):
        data = content(20_000)
        serial.write(7, data)
        assert (serial.read(7, len(data)) == data).all()
        for number in range(300, 306):
            case = random_case(7, number, configs=(REDLINE,))
            found = Runtime(case.program, serial).forward(case.x, plan=case.plan, first_image=case.first_image)
            wanted = Runtime(case.program, oracle).forward(case.x, plan=case.plan, first_image=case.first_image)
            compare(found, wanted, case)
        if "frames" not in noise or noise["frames"] > 0.01:
            assert cable.damaged > 10
            assert serial.repeated > 0


def test_a_cable_pulled_in_a_launch_is_an_error_and_a_new_device_works(board: SimulatedBoard) -> None:
    case = random_case(7, 300, configs=(REDLINE,))
    with Cable(board.path) as cable, device(cable.path, attempts=2) as serial:
        runtime = Runtime(case.program, serial)
        register = serial._register

        def pulling(name: str) -> int:
            if name == "ap_ctrl":
                cable.pull()
            return register(name)

        serial._register = pulling  # type: ignore[method-assign]
        with pytest.raises(LineLost, match="unplugged or has lost its power; plug it in|no board answers"):
            runtime.forward(case.x)
        with pytest.raises(LineLost):
            serial.read(0, 4)
    with device(board.path) as serial, ReferenceDevice(REDLINE, memory_bytes=1 << 24) as oracle:
        found = Runtime(case.program, serial).forward(case.x)
        compare(found, Runtime(case.program, oracle).forward(case.x), "after the cable is plugged in again")


def test_a_launch_that_a_host_left_behind_does_not_disturb_the_next(board: SimulatedBoard) -> None:
    """The host before was killed: the accelerator is still at work when the next one comes."""
    case = random_case(7, 301, configs=(REDLINE,))
    with device(board.path) as serial:
        serial._wait = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[assignment,method-assign]
        with pytest.raises(KeyboardInterrupt):
            Runtime(case.program, serial).forward(case.x)
    with device(board.path) as serial, ReferenceDevice(REDLINE, memory_bytes=1 << 24) as oracle:
        found = Runtime(case.program, serial).forward(case.x)
        compare(found, Runtime(case.program, oracle).forward(case.x), "after a launch left behind")


def test_the_bitstream_of_another_accelerator_is_refused(board: SimulatedBoard) -> None:
    for other in (replace(REDLINE, pool_columns=16), replace(REDLINE, saboteur=False), replace(REDLINE, lanes=8)):
        with pytest.raises(DeviceError, match=rf"another accelerator: configuration hash {REDLINE.hash:#018x}"):
            SerialDevice(other, port=board.path)
    with device(board.path) as serial:
        assert serial.memory_bytes == MEMORY


def test_lenet_runs_on_the_board(board: SimulatedBoard) -> None:
    program = compiled(models.lenet5(pretrained=True), REDLINE, calibrate=torch.rand(4, 1, 28, 28))
    x = program.quantise_input(torch.rand(2, 1, 28, 28))
    with device(board.path) as serial, ReferenceDevice(REDLINE) as oracle:
        compare(Runtime(program, serial).forward(x), Runtime(program, oracle).forward(x), "LeNet-5")


@pytest.mark.usefixtures("own_place")
@pytest.mark.timeout(120)  # and not forever
def test_a_board_that_dies_is_an_error_and_leaves_nothing_behind() -> None:
    before = footprint()
    serial = SerialDevice(REDLINE, simulated=True, memory_bytes=MEMORY, timeout_s=0.5, attempts=3)
    assert serial._board is not None
    pid = serial._board.pid
    assert serial._register("ap_ctrl") & 4
    serial._board.process.kill()
    serial._board.process.wait()
    with pytest.raises(LineLost, match="plug it in|no board answers"):
        serial.write(0, content(1000))
    serial.close()
    assert not alive(pid)
    assert footprint() == before


def test_the_counters_are_the_accelerators_own(board: SimulatedBoard) -> None:
    case = random_case(7, 302, configs=(REDLINE,))
    with device(board.path) as serial:
        report = Runtime(case.program, serial).forward(case.x).report
        assert report.cycles > report.mac_cycles > 0
        assert report.bytes_read > 0
        assert report.bytes_written > 0
        assert serial._register("isr") == 0, f"the interrupt is left pending ({OFFSET['isr']:#x})"


def test_reference_and_serial_agree_on_random_cases() -> None:
    report = verify(("reference", "serial"), cases=20, seed=20_262, configs=(REDLINE,))
    assert report.ok, str(report)


def test_lenet_on_a_board_by_microcode_takes_the_cycles_that_are_estimated() -> None:
    board = BOARDS["icebreaker"]
    torch.manual_seed(0)
    images = torch.rand(2, 1, 28, 28)
    program = compiled(models.lenet5(), board.config, calibrate=images)
    x = program.quantise_input(images[:1])
    with (
        SerialDevice(board.config, simulated=True, memory_bytes=board.memory_bytes) as serial,
        ReferenceDevice(board.config, memory_bytes=1 << 24) as oracle,
    ):
        found = Runtime(program, serial).forward(x, writeback=True)
        compare(found, Runtime(program, oracle).forward(x, writeback=True), "on the iCEBreaker")
    predicted = predict(program, on_chip(board.config), writeback=True).cycles
    assert predicted == pytest.approx(found.report.cycles, rel=0.005)
