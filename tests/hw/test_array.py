"""The MAC array: steps with gaps between them, wrapping accumulators, parameters per output group, and flips."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.array import MacArray
from hw.config import Config
from sim.streams import start
from tests.hw.stage import (
    DEEP,
    PAUSES,
    PIPECNN,
    WIDE,
    in_bench,
    pack,
    requantised,
    requantised_as_pipecnn,
    run_stage,
    unpack,
    wrap32,
)

FIRST, LAST, GROUP, PADDING, FLIP = (1 << bit for bit in range(5))


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP, PIPECNN], ids=["wide", "deep", "pipecnn"])
def test_accumulates_wrapping_and_applies_each_groups_parameters(config: Config, pause: float) -> None:
    run_stage(MacArray, config, "tests.hw.test_array", pause)


def operand(rng: random.Random, count: int) -> list[int]:
    """Random int8 values, or an extreme in all of them."""
    kind = rng.random()
    if kind < 0.1:
        return [-128] * count
    return [rng.choice((-128, 127)) if kind < 0.2 else rng.randrange(-128, 128) for _ in range(count)]


@cocotb.test()
async def follows_the_golden_model(dut: Any) -> None:
    """Random outputs of random length; checks every output, when it comes, and the use of parameters and masks."""
    config, pause, rng = in_bench()
    lanes, vec, pipecnn = config.lanes, config.vec, config.arithmetic == "pipecnn"
    bits = 8 if pipecnn else 32  # of a bias
    relu, upper = rng.random() < 0.5, rng.choice((127, rng.randrange(128)))
    steps: list[tuple[int, list[int], list[int]]] = []
    groups: list[int] = []  # bit patterns of parameters
    masks: list[int] = []
    expected: list[list[int]] = []
    for _ in range(20):
        bias = [
            rng.randrange(-128, 128) if pipecnn else wrap32(rng.randrange(2**32) >> rng.choice((0, 12, 20)))
            for _ in range(lanes)
        ]
        shift = [rng.randrange(32) if rng.random() < 0.2 else rng.randrange(4, 14) for _ in range(lanes)]
        groups.append(
            sum(
                ((b & ((1 << bits) - 1)) | s << bits) << (bits + 5) * lane
                for lane, (b, s) in enumerate(zip(bias, shift, strict=True))
            )
        )
        for output in range(rng.randrange(1, 6)):
            accumulators, length = [0] * lanes if pipecnn else list(bias), rng.choice((1, 2, 3, 9))
            for step in range(length):
                features, weights = operand(rng, vec), operand(rng, lanes * vec)
                flags = FIRST * (step == 0) | LAST * (step == length - 1) | GROUP * (step == 0 and output == 0)
                flags |= PADDING * (rng.random() < 0.1) | FLIP * (rng.random() < 0.1)
                steps.append((flags, features, weights))
                mask = (
                    [rng.randrange(2**32) & rng.randrange(2**32) for _ in range(lanes)] if flags & FLIP else [0] * lanes
                )
                if flags & FLIP:
                    masks.append(pack(mask, 32))
                for lane in range(lanes):
                    own = weights[lane * vec : (lane + 1) * vec]
                    total = 0 if flags & PADDING else sum(f * w for f, w in zip(features, own, strict=True))
                    accumulators[lane] = wrap32(wrap32(accumulators[lane] + total) ^ mask[lane])
            expected.append(
                [
                    requantised_as_pipecnn(a, s, b, relu, upper) if pipecnn else requantised(a, s, relu, upper)
                    for a, s, b in zip(accumulators, shift, bias, strict=True)
                ]
            )

    dut.valid.value, dut.relu.value, dut.upper.value = 0, int(relu), upper
    dut.params.value, dut.flips.value = groups[0], masks[0] if masks else 0
    await start(dut)
    delay = MacArray(config).delay
    due: list[int] = []
    got: list[list[int]] = []
    to_send, cycle = list(steps), 0
    while to_send or due:
        sending = bool(to_send) and rng.random() >= pause
        dut.valid.value = int(sending)
        if sending:
            flags, features, weights = to_send.pop(0)
            dut.flags.value, dut.features.value, dut.weights.value = flags, pack(features), pack(weights)
            if flags & LAST:
                due.append(cycle + delay)
        await ReadOnly()
        assert bool(int(dut.output_valid.value)) == (cycle in due), (
            f"cycle {cycle}: an output comes `delay` after its last step"
        )
        if cycle in due:
            got.append(unpack(int(dut.output.value), lanes))
            due.remove(cycle)
        taken, flipped = int(dut.params_taken.value), int(dut.flips_taken.value)
        await RisingEdge(dut.clk)
        cycle += 1
        if taken:
            groups.pop(0)
            dut.params.value = groups[0] if groups else 0
        if flipped:
            masks.pop(0)
            dut.flips.value = masks[0] if masks else 0
    assert got == expected
    assert not groups
    assert not masks
