"""The requantiser: equal to the contract's formula, at a latency of `delay`, for every shift and both ends of int32."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.requantise import Requantise
from sim.streams import start
from tests.hw.stage import WIDE, requantised, run_stage

EXTREMES = (0, 1, -1, 127, 128, -128, -129, 2**31 - 1, -(2**31), 2**30, 63, 64, -64, -65)


@pytest.mark.parametrize(("relu", "upper"), [(0, 127), (1, 127), (1, 96), (0, 0)])
def test_requantises_every_shift_exactly_and_saturates_at_both_ends(relu: int, upper: int) -> None:
    run_stage(lambda _: Requantise(), WIDE, "tests.hw.test_requantise", 0, RELU=relu, UPPER=upper)


@cocotb.test()
async def follows_the_formula(dut: Any) -> None:
    """A new value every cycle."""
    relu, upper = bool(int(os.environ["RELU"])), int(os.environ["UPPER"])
    dut.valid.value, dut.relu.value, dut.upper.value = 0b1111, int(relu), upper
    await start(dut)
    cases = [(value, shift) for shift in range(32) for value in EXTREMES]
    cases += [(half + end, shift) for shift in range(1, 25) for half in (1 << shift - 1,) for end in (-1, 0, 1)]
    cases += [(random.randrange(-(2**31), 2**31) >> random.randrange(24), random.randrange(32)) for _ in range(2000)]
    expected = [requantised(value, shift, relu, upper) for value, shift in cases]
    got = []
    for cycle in range(len(cases) + Requantise.delay):
        value, shift = cases[min(cycle, len(cases) - 1)]
        dut.accumulator.value, dut.shift.value = value & 0xFFFFFFFF, shift
        await ReadOnly()
        if cycle >= Requantise.delay:
            got.append(dut.result.value.to_signed())
        await RisingEdge(dut.clk)
    wrong = [(case, g, e) for case, g, e in zip(cases, got, expected, strict=True) if g != e]
    assert not wrong, wrong[:5]
