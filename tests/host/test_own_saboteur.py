"""An accelerator from outside the tree that replays fault events itself: found by name, and exact under soft errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import redline
from host.conformance import suite
from host.devices.registry import GROUP
from host.verification.verify import verify
from hw.config import Config

CONFIG = Config(lanes=4, vec=4, port_bits=32, saboteur=True)
CODE = """
from host.devices.checks import check_faults, check_launch, check_range
from host.devices.device import Device, DeviceError, LaunchReport
from tests.host.executor import Executor  # stands for the hardware


class Sabot(Device):
    name = "sabot"
    knows_conditions = False

    def __init__(self, config, *, memory_bytes=1 << 24):
        self.config, self.memory_bytes = config, memory_bytes
        self.board = Executor(config, memory_bytes=memory_bytes)

    def _open(self):
        if self.board is None:
            raise DeviceError("this device is closed; make a new one")
        return self.board

    def write(self, address, array):
        board = self._open()
        check_range(self, address, array.nbytes)
        board.write(address, array)

    def read(self, address, nbytes):
        board = self._open()
        check_range(self, address, nbytes)
        return board.read(address, nbytes).copy()

    def launch(self, launch):
        board = self._open()
        check_launch(self, launch)
        check_faults(self, launch)
        applied = 0
        for unit in launch.units:
            self.write(unit.descriptors_address, unit.descriptors)
            self.write(unit.mac_events_address, unit.mac_events)
            self.write(unit.feature_events_address, unit.feature_events)
            lists = unit.descriptors_address, len(unit.descriptors)
            mac = unit.mac_events_address, len(unit.mac_events)
            feature = unit.feature_events_address, len(unit.feature_events)
            try:
                applied += board.run(*lists, mac, feature)
            except (IndexError, ValueError, AssertionError) as error:
                raise DeviceError(f"the launch cannot be executed: {error}") from error
        return LaunchReport(faults_applied=applied)

    def close(self):
        self.board = None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As pip leaves it: a module, and the metadata with its entry point."""
    (tmp_path / "sabot.py").write_text(CODE)
    info = tmp_path / "sabot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: sabot\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nsabot = sabot:Sabot\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("sabot", None)


@pytest.mark.usefixtures("installed")
def test_it_conforms_with_its_fault_instrumentation() -> None:
    report = suite.run(
        "sabot", lambda config: redline.device("sabot", config, memory_bytes=1 << 24), [CONFIG], any_build=False
    )
    assert report.ok, report.failures
    passed = [result for result in report.results if result.check.group == "faults" and result.state == "pass"]
    assert passed, "no check of faults ran"


@pytest.mark.usefixtures("installed")
def test_soft_errors_give_the_references_bytes() -> None:
    report = verify(("reference", "sabot"), cases=8, seed=4, configs=(CONFIG,))
    assert report.ok, str(report)
    assert report.faults > 0
