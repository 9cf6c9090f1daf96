"""The requantiser: equal to the contract's formula, at a latency of `delay`, for every shift and both ends of int32."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.requantise import Requantise, requantise_delay
from sim.streams import start
from tests.hw.stage import PIPECNN, WIDE, requantised, requantised_as_pipecnn, run_stage

EXTREMES = (0, 1, -1, 127, 128, -128, -129, 2**31 - 1, -(2**31), 2**30, 63, 64, -64, -65)


@pytest.mark.parametrize(("relu", "upper"), [(0, 127), (1, 127), (1, 96), (0, 0)])
def test_requantises_every_shift_exactly_and_saturates_at_both_ends(relu: int, upper: int) -> None:
    run_stage(lambda _: Requantise(), WIDE, "tests.hw.test_requantise", 0, PIPECNN=0, RELU=relu, UPPER=upper)


@pytest.mark.parametrize(("relu", "upper"), [(0, 127), (1, 127), (1, 96)])
def test_adds_pipecnns_bias_wrapping_in_8_bits(relu: int, upper: int) -> None:
    stage = "tests.hw.test_requantise"
    run_stage(lambda _: Requantise(pipecnn=True), PIPECNN, stage, 0, PIPECNN=1, RELU=relu, UPPER=upper)


@cocotb.test()
async def follows_the_formula(dut: Any) -> None:
    """A new value every cycle."""
    relu, upper = bool(int(os.environ["RELU"])), int(os.environ["UPPER"])
    pipecnn = bool(int(os.environ["PIPECNN"]))
    delay = requantise_delay(pipecnn=pipecnn)
    dut.valid.value, dut.relu.value, dut.upper.value = (1 << delay) - 1, int(relu), upper
    await start(dut)
    cases = [(value, shift) for shift in range(32) for value in EXTREMES]
    cases += [(half + end, shift) for shift in range(1, 25) for half in (1 << shift - 1,) for end in (-1, 0, 1)]
    cases += [(random.randrange(-(2**31), 2**31) >> random.randrange(24), random.randrange(32)) for _ in range(2000)]
    biases = [random.choice((0, -128, 127, random.randrange(-128, 128))) for _ in cases]
    expected = [
        requantised_as_pipecnn(value, shift, bias, relu, upper) if pipecnn else requantised(value, shift, relu, upper)
        for (value, shift), bias in zip(cases, biases, strict=True)
    ]
    got = []
    for cycle in range(len(cases) + delay):
        at = min(cycle, len(cases) - 1)
        value, shift = cases[at]
        dut.accumulator.value, dut.shift.value = value & 0xFFFFFFFF, shift
        if pipecnn:
            dut.bias.value = biases[at] & 0xFF
        await ReadOnly()
        if cycle >= delay:
            got.append(dut.result.value.to_signed())
        await RisingEdge(dut.clk)
    wrong = [(case, g, e) for case, g, e in zip(cases, got, expected, strict=True) if g != e]
    assert not wrong, wrong[:5]
