"""`redline board` and the options that reach a board from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from host import cli, doctor
from host.conformance.suite import REDLINE
from host.devices import registry
from host.devices.device import DeviceError
from host.devices.serial.device import SerialDevice
from host.verification.verify import make_device
from hw.boards.catalogue import BOARDS
from hw.config import Config
from sim.client import SimulatorError
from tests.host.devices.serial.model import Board
from tests.sim.fixtures.processes import wait_for_end

OPTIONS = ("lanes=4", "vec=4", "feature_bytes=4096", "weight_bytes=1024", "pool_columns=32", "saboteur=true")
"""`REDLINE`, as a user says it."""


def test_a_board_of_no_accelerator_is_refused() -> None:
    said = CliRunner().invoke(cli.app, ["board", "simulate", "--option", "speed=3"])
    assert said.exit_code == 2
    assert "no accelerator has speed" in said.output


@pytest.mark.parametrize(("more", "memory_bytes"), [((), 84 << 10), (("--memory-bytes", "8192"), 8192)])
def test_a_board_by_name_is_simulated_with_its_accelerator_and_memory(
    more: tuple[str, ...], memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Config, int]] = []

    def started(config: Config, memory_bytes: int) -> None:
        asked.append((config, memory_bytes))
        raise SimulatorError("seen enough")

    monkeypatch.setattr("sim.board.SimulatedBoard", started)
    CliRunner().invoke(cli.app, ["board", "simulate", "--option", "board=ulx3s-25f", "--option", "lanes=8", *more])
    assert asked == [(replace(BOARDS["ulx3s-25f"].config, lanes=8), memory_bytes)]


def test_conformance_takes_a_port_and_refuses_one_that_is_not_there() -> None:
    arguments = ["conformance", "serial", "--option", "port=/dev/nothing", "--option", "lanes=4", "--option", "vec=4"]
    with pytest.raises(DeviceError, match="/dev/nothing cannot be opened"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def test_a_board_on_a_port_has_its_own_memory_in_verification_too() -> None:
    with Board(REDLINE, 1 << 14) as board, make_device("serial", REDLINE, 2, port=board.path) as serial:
        assert isinstance(serial, SerialDevice)
        assert serial.memory_bytes == 1 << 14
        assert "serial" in registry.device_names()


def test_doctor_says_how_to_get_serial_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.serial_ports().state == "ok"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert doctor.serial_ports().remedy == "run: pip install 'redline[serial]'"


@pytest.mark.slow
def test_a_simulated_board_serves_other_programs_until_ctrl_c() -> None:
    given = [part for option in OPTIONS for part in ("--option", option)]
    command = [sys.executable, "-m", "host.cli", "board", "simulate", "--json", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        for _ in range(2):  # one host after the other
            with SerialDevice(REDLINE, port=told["port"], baud=told["baud"], timeout_s=2.0) as serial:
                serial.write(5, np.arange(100, dtype=np.uint8))
                assert (serial.read(5, 100) == np.arange(100)).all()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert wait_for_end(told["pid"])
