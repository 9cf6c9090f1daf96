# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""The serial line: bytes arrive whole at rates that are a little off, glitches and broken bytes do no harm."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, Timer

from hw.config import ConfigError
from hw.link.uart import LEAST_DIVISOR, Receiver, Transmitter, divisor
from sim.bench import component_verilog, run_bench
from sim.streams import PERIOD_NS, start, stream_put
from tests.hw.link.line import receive, send, strobes

CYCLES = (4, 8, 13, 104)


@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("which", ["receiver", "transmitter"])
def test_moves_bytes(which: str, cycles: int) -> None:
    component = Receiver(cycles) if which == "receiver" else Transmitter(cycles)
    run_bench(
        component_verilog(component, "uart"),
        "uart",
        "tests.hw.link.test_uart",
        parameters={"WHICH": which, "CYCLES": cycles},
    )


def test_a_divisor_is_the_nearest_or_is_refused_with_the_rate_that_is_exact() -> None:
    assert divisor(12e6, 1_000_000) == 12
    assert divisor(50e6, 115_200) == 434
    assert divisor(61.3e6, 1_000_000) == 61
    with pytest.raises(ConfigError, match=r"gives from 1 to 2\.5e\+06 baud \(4 cycles a bit\), not 3e\+06"):
        divisor(10e6, 3_000_000)
    with pytest.raises(ConfigError, match=r"5\.45 cycles a bit of 1\.1e\+06 baud.*1200000 baud is exact"):
        divisor(6e6, 1_100_000)
    with pytest.raises(ConfigError, match="at least 4 cycles a bit, not 3"):
        Receiver(LEAST_DIVISOR - 1)


def on(which: str) -> Any:
    """A cocotb test that runs only on that component."""
    return cocotb.test(skip=os.environ.get("WHICH") != which)


async def listening(dut: Any) -> tuple[int, random.Random, list[int], list[int]]:
    """A receiver out of reset, what it receives and its errors."""
    cycles, rng = int(os.environ["CYCLES"]), random.Random(random.random())
    dut.rx.value = 1
    await start(dut)
    found: list[int] = []
    errors: list[int] = []
    cocotb.start_soon(strobes(dut, "bytes__payload", "bytes__valid", found))
    cocotb.start_soon(strobes(dut, "error", "error", errors))
    return cycles, rng, found, errors


@on("receiver")
async def receives_bytes_at_rates_a_little_off(dut: Any) -> None:
    cycles, rng, found, errors = await listening(dut)
    for off in (1.0, 0.98, 1.02) if cycles >= 8 else (1.0,):
        for gap in (0.0, 3.0):
            sent = bytes([0, 255, 0x55, 0xAA]) + rng.randbytes(60)
            await Timer(rng.randrange(1, 1000 * PERIOD_NS), "ps")
            await send(dut.rx, sent, cycles * off, rng=rng, gap=gap)
            await ClockCycles(dut.clk, 2 * cycles + 10)
            assert bytes(found) == sent, f"at {off} of the rate, gaps of up to {gap} bits"
            assert not errors
            found.clear()


@on("receiver")
async def ignores_glitches(dut: Any) -> None:
    """Pulses of less than an eighth of a bit, on an idle line and within bytes."""
    cycles, rng, found, errors = await listening(dut)
    glitch_ps = max(1, cycles // 8) * PERIOD_NS * 500
    for _ in range(50):
        dut.rx.value = 0
        await Timer(glitch_ps, "ps")
        dut.rx.value = 1
        await Timer(rng.randrange(1, 20) * cycles * PERIOD_NS * 100, "ps")
    await ClockCycles(dut.clk, 12 * cycles)
    assert not found
    assert not errors
    for byte in rng.randbytes(30):
        for bit in (0, *(byte >> at & 1 for at in range(8)), 1):
            before = rng.randrange(0, round(0.8 * cycles * PERIOD_NS * 1000))
            dut.rx.value = bit
            await Timer(before + 1, "ps")
            if cycles >= 13:  # a bit of few samples is no match for a glitch on one of them
                dut.rx.value = 1 - bit
                await Timer(glitch_ps, "ps")
                dut.rx.value = bit
            await Timer(cycles * PERIOD_NS * 1000 - before - (glitch_ps if cycles >= 13 else 0), "ps")
        await ClockCycles(dut.clk, 2 * cycles + 10)
        assert found == [byte]
        found.clear()


@on("receiver")
async def drops_bytes_without_a_stop_bit_and_goes_on(dut: Any) -> None:
    cycles, rng, found, errors = await listening(dut)
    for _ in range(10):
        await send(dut.rx, rng.randbytes(1), cycles, stop=0)
        await ClockCycles(dut.clk, 2 * cycles + 10)
        assert not found
        assert len(errors) == 1
        errors.clear()
        sent = rng.randbytes(3)
        await send(dut.rx, sent, cycles)
        await ClockCycles(dut.clk, 2 * cycles + 10)
        assert bytes(found) == sent
        found.clear()
    # A line held low is one error, not one a byte.
    dut.rx.value = 0
    await ClockCycles(dut.clk, 50 * cycles)
    dut.rx.value = 1
    await ClockCycles(dut.clk, 2 * cycles)
    assert len(errors) == 1
    assert not found


@on("transmitter")
async def transmits_bytes_with_gaps_or_without(dut: Any) -> None:
    cycles, rng = int(os.environ["CYCLES"]), random.Random(random.random())
    dut.bytes__valid.value = 0
    await start(dut)
    found = bytearray()
    cocotb.start_soon(receive(dut.tx, cycles, found))
    for pause in (0.0, 0.99):
        sent = bytes([0, 255, 0x55, 0xAA]) + rng.randbytes(60)
        await stream_put(dut, "bytes", sent, rng=rng, pause=pause)
        await ClockCycles(dut.clk, 12 * cycles)
        assert bytes(found) == sent
        found.clear()


@on("transmitter")
async def leaves_no_gap_between_bytes(dut: Any) -> None:
    cycles = int(os.environ["CYCLES"])
    dut.bytes__valid.value = 0
    await start(dut)
    found = bytearray()
    cocotb.start_soon(receive(dut.tx, cycles, found))
    cocotb.start_soon(stream_put(dut, "bytes", bytes(range(41))))
    await ClockCycles(dut.clk, 40 * 10 * cycles + 5)
    assert len(found) == 40
