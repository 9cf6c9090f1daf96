"""The array that takes turns: sums, biases and shifts of every lane equal exact integers, whatever comes between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.config import Config
from hw.microcode.mac import SUM_BITS, TurnMac
from sim.streams import start
from tests.hw.stage import MICROCODE, PAUSES, in_bench, requantised, run_stage


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [MICROCODE, replace(MICROCODE, lanes=2)], ids=["four lanes", "two lanes"])
def test_accumulates_and_requantises_every_lane(config: Config, pause: float) -> None:
    run_stage(TurnMac, config, "tests.hw.microcode.test_mac", pause)


def packed(values: list[int]) -> int:
    return int.from_bytes(bytes(value & 0xFF for value in values), "little")


async def once(dut: Any, name: str) -> None:
    """One cycle of a command."""
    dut[name].value = 1
    await RisingEdge(dut.clk)
    dut[name].value = 0


@cocotb.test()
async def equals_exact_integers(dut: Any) -> None:
    """Outputs of random operands, with the extremes of both; biases near both ends of int32, which wrap."""
    config, pause, rng = in_bench()
    for name in ("valid", "clear", "bias", "turn", "shift"):
        dut[name].value = 0
    await start(dut)
    for _ in range(60):
        await once(dut, "clear")
        sums = [0] * config.lanes
        for lane in range(config.lanes):
            sums[lane] = rng.choice((0, 2**31 - 1, -(2**31), rng.randrange(-(2**31), 2**31), rng.randrange(-999, 999)))
            dut.word.value = sums[lane] & 0xFFFFFFFF
            await once(dut, "bias")
        for _ in range(rng.randrange(6)):
            features = [rng.choice((-128, 127, 0, rng.randrange(-128, 128))) for _ in range(config.vec)]
            for lane in range(config.lanes):
                weights = [rng.choice((-128, 127, rng.randrange(-128, 128))) for _ in range(config.vec)]
                while rng.random() < pause:
                    dut.features.value, dut.weights.value = rng.getrandbits(32), rng.getrandbits(32)
                    await RisingEdge(dut.clk)
                dut.features.value, dut.weights.value = packed(features), packed(weights)
                await once(dut, "valid")
                sums[lane] += sum(f * w for f, w in zip(features, weights, strict=True))
        await ReadOnly()
        while not dut.idle.value:
            await RisingEdge(dut.clk)
            await ReadOnly()
        await RisingEdge(dut.clk)
        for lane in range(config.lanes):
            exact = (sums[lane] + 2**31) % 2**32 - 2**31
            shift = rng.choice((0, 0, 1, 8, 31, rng.randrange(32)))
            for _ in range(shift):
                await once(dut, "shift")
            await ReadOnly()
            found = dut["sum"].value.to_signed() + int(dut.up.value)
            await RisingEdge(dut.clk)
            assert -(1 << SUM_BITS - 1) <= found <= 1 << SUM_BITS - 1
            assert max(-128, min(127, found)) == requantised(exact, shift, False, 127), (exact, shift, found)
            await once(dut, "turn")
