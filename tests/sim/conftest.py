"""Fixtures of the simulator's tests."""

from __future__ import annotations

from collections.abc import Iterator

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
