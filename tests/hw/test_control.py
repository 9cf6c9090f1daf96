"""The control port: the Vitis map over AXI4-Lite, with the bus stalled at random."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import RisingEdge

from hw.config import INTERFACE_VERSION
from hw.control import COUNTERS, Control
from hw.registers import AP_DONE, AP_IDLE, AP_READY, AP_START, OFFSET
from sim.streams import start, stream_get, stream_put
from tests.hw.stage import PAUSES, WIDE, in_bench, pulse, run_stage, until


@pytest.mark.parametrize("pause", PAUSES)
def test_follows_the_vitis_register_map(pause: float) -> None:
    run_stage(Control, WIDE, "tests.hw.test_control", pause)


class Bus:
    """An AXI4-Lite master that stalls at random."""

    def __init__(self, dut: Any, rng: random.Random, pause: float) -> None:
        self.dut, self.rng, self.pause = dut, rng, pause

    def _how(self) -> dict[str, Any]:
        return {"rng": random.Random(self.rng.random()), "pause": self.pause}

    async def write(self, name: str, value: int, strobes: int = 0xF) -> None:
        address = cocotb.start_soon(stream_put(self.dut, "bus__aw", [OFFSET[name]], **self._how()))
        await stream_put(self.dut, "bus__w", [value | strobes << 32], **self._how())
        await address
        assert await stream_get(self.dut, "bus__b", 1, **self._how()) == [0]

    async def read(self, name: str) -> int:
        await stream_put(self.dut, "bus__ar", [OFFSET[name]], **self._how())
        (answer,) = await stream_get(self.dut, "bus__r", 1, **self._how())
        assert answer >> 32 == 0, "response is OKAY"
        return answer & 0xFFFFFFFF


@cocotb.test()
async def arguments_are_kept(dut: Any) -> None:
    """Every argument register reads back what was written, bytes by their strobes, and reaches its output."""
    config, pause, rng = in_bench()
    dut.finished.value = 0
    await start(dut)
    bus = Bus(dut, rng, pause)
    for name in ("descriptors", "mac_events", "feature_events"):
        low, high = rng.randrange(2**32), rng.randrange(2**32)
        await bus.write(f"{name}_lo", low)
        await bus.write(f"{name}_hi", high)
        assert await bus.read(f"{name}_lo") == low
        assert int(dut[name].value) == high << 32 | low
    for name in ("jobs", "mac_event_count", "feature_event_count"):
        await bus.write(name, 0x11223344)
        await bus.write(name, 0xAABBCCDD, strobes=0b0101)
        assert await bus.read(name) == 0x11BB33DD
    identity = await bus.read("config_hash_hi") << 32 | await bus.read("config_hash_lo")
    assert identity == config.hash
    assert await bus.read("interface_version") == INTERFACE_VERSION
    for name in COUNTERS:
        value = rng.randrange(2**64)
        dut[name].value = value
        await RisingEdge(dut.clk)
        assert await bus.read(f"{name}_hi") << 32 | await bus.read(f"{name}_lo") == value


@cocotb.test()
async def start_done_and_interrupt(dut: Any) -> None:
    """Done is cleared by reading, the interrupt by toggling, and a start while running is ignored."""
    _, pause, rng = in_bench()
    dut.finished.value = 0
    await start(dut)
    bus = Bus(dut, rng, pause)
    starts = 0

    async def count_starts() -> None:
        nonlocal starts
        while True:
            await RisingEdge(dut.clk)
            starts += int(dut.start.value)

    cocotb.start_soon(count_starts())
    assert await bus.read("ap_ctrl") == AP_IDLE
    for enabled in (0, 1):
        await bus.write("gie", enabled)
        await bus.write("ier", 1)
        await bus.write("ap_ctrl", AP_START)
        await bus.write("ap_ctrl", AP_START)
        assert await bus.read("ap_ctrl") == AP_START, "running"
        await pulse(dut, "finished")
        if enabled:
            await until(dut, "interrupt")
        assert await bus.read("ap_ctrl") == AP_DONE | AP_IDLE | AP_READY
        assert await bus.read("ap_ctrl") == AP_IDLE, "done is cleared by reading"
        assert await bus.read("isr") == 1
        assert int(dut.interrupt.value) == enabled
        await bus.write("isr", 1)
        assert int(dut.interrupt.value) == 0
    assert starts == 2
