"""Fixtures of the simulator's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw.config import Config
from sim.build import Model, build
from sim.memory import DeviceMemory
from tests.sim.fixtures.toy import toy_verilog


@pytest.fixture(scope="session")
def toy() -> Model:
    """The toy accelerator of the default parameters."""
    return build(Config(), verilog=toy_verilog(Config()))


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    """One MiB of device memory."""
    memory = DeviceMemory(1 << 20)
    yield memory
    memory.close()


@pytest.fixture
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working and temporary folder that no one else uses, for this process and those it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
