"""The instrumented array against lanes evaluated one bit at a time: late bits, histories, gaps, flips, stuck bits."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from host.faults.conditions import Clock, Conditions, StuckBit
from hw.array import MacArray
from hw.config import Config
from hw.overclocked import adders_verilog
from sim.bench import component_verilog, run_bench
from sim.streams import start
from tests.hw.golden import GoldenLane
from tests.hw.stage import DEEP, PAUSES, PIPECNN, WIDE, in_bench, pack, pulse, unpack
from tests.hw.tables import random_table
from tests.hw.test_array import FIRST, FLIP, GROUP, LAST, PADDING, operand

ROW = FLIP << 1
CONFIGS = {
    "wide": replace(WIDE, overclock=32, probe=True),
    "deep": replace(DEEP, overclock=32, probe=True),
    "pipecnn": replace(PIPECNN, overclock=32, probe=True),
}


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_array_captures_late_bits_as_one_bit_at_a_time_says(name: str, pause: float) -> None:
    config = CONFIGS[name]
    verilog = component_verilog(MacArray(config), "stage") + adders_verilog()
    run_bench(
        verilog, "stage", "tests.hw.test_overclocked", parameters={"CONFIG": json.dumps(asdict(config)), "PAUSE": pause}
    )


@cocotb.test()
async def follows_the_golden_lanes(dut: Any) -> None:
    """Several launches at different clocks; every accumulator after every step."""
    config, pause, rng = in_bench()
    dut.valid.value, dut.relu.value, dut.upper.value = 0, 0, 127
    dut.params.value, dut.flips.value, dut.load__valid.value, dut.load__forget.value = 0, 0, 0, 0
    await start(dut)
    wrong = 0
    for launch, share in enumerate((0.75, 1.0, 0.9, 0.6, None, 0.85)):
        wrong += await one_launch(dut, config, pause, rng, launch, share)
    assert wrong > 100, "the clocks are beyond the limit, so that there is something to compare"


async def one_launch(
    dut: Any, config: Config, pause: float, rng: random.Random, number: int, share: float | None
) -> int:
    """A launch at a share of the safe period (None: no clock); the number of accumulators that it makes wrong."""
    lanes, vec, pipecnn = config.lanes, config.vec, config.arithmetic == "pipecnn"
    table = random_table(number, config)
    period = 10**6 if share is None else round(share * table.onset_ps)
    stuck = {}
    if number >= 3:
        stuck = {(1, "accumulator", 3): 1, (2, "accumulator", 30): 0, (3, "tree_1_0", 16): 1, (0, "tree_2_0", 2): 0}
    conditions = Conditions(
        None if share is None else Clock(table, period, 1.0),
        tuple(sorted(StuckBit(*where, value) for where, value in stuck.items())),
    )
    await pulse(dut, "load__forget")
    for record in conditions.records(config):
        dut.load__valid.value, dut.load__record.value = 1, int.from_bytes(record.tobytes(), "little")
        await RisingEdge(dut.clk)
    dut.load__valid.value = 0

    golden = [GoldenLane(table, lane, period, stuck) for lane in range(lanes)]
    safe = [GoldenLane(table, lane, 10**6) for lane in range(lanes)]
    bits = 8 if pipecnn else 32
    steps: list[tuple[int, list[int], list[int]]] = []
    groups: list[int] = []
    flips: list[int] = []
    expected: list[list[int]] = []
    wrong = 0
    for _ in range(3):
        bias = [rng.randrange(-128, 128) if pipecnn else rng.randrange(-(2**31), 2**31) for _ in range(lanes)]
        groups.append(sum(((b & ((1 << bits) - 1)) | 5 << bits) << (bits + 5) * lane for lane, b in enumerate(bias)))
        for row in range(2):
            for lane in (*golden, *safe):
                lane.restart()
            for output in range(rng.randrange(1, 4)):
                length = rng.choice((1, 2, 3, 7))
                for step in range(length):
                    features, weights = operand(rng, vec), operand(rng, lanes * vec)
                    flags = FIRST * (step == 0) | LAST * (step == length - 1)
                    flags |= ROW * (step == 0 and output == 0) | GROUP * (step == 0 and output == 0 and row == 0)
                    flags |= PADDING * (rng.random() < 0.1) | FLIP * (rng.random() < 0.1)
                    mask = [rng.randrange(2**32) if flags & FLIP else 0 for _ in range(lanes)]
                    if flags & FLIP:
                        flips.append(pack(mask, 32))
                    seen = [0] * vec if flags & PADDING else features
                    now = []
                    for lane in range(lanes):
                        own = weights[lane * vec : (lane + 1) * vec]
                        products = [f * w for f, w in zip(seen, own, strict=True)]
                        loaded = 0 if pipecnn else bias[lane]
                        now.append(golden[lane].step(products, loaded, step == 0, mask[lane]))
                        wrong += now[-1] != safe[lane].step(products, loaded, step == 0, mask[lane])
                    steps.append((flags, features, weights))
                    expected.append(now)

    got: list[list[int]] = []
    dut.params.value, dut.flips.value = groups.pop(0), flips[0] if flips else 0
    quiet = 0
    while quiet < 40:
        sending = bool(steps) and rng.random() >= pause
        quiet = 0 if steps else quiet + 1
        dut.valid.value = int(sending)
        if sending:
            flags, features, weights = steps.pop(0)
            dut.flags.value, dut.features.value, dut.weights.value = flags, pack(features), pack(weights)
        await ReadOnly()
        if int(dut.probe_acc_valid.value):
            got.append(unpack(int(dut.probe_acc.value), lanes, 32))
        taken, flipped = int(dut.params_taken.value), int(dut.flips_taken.value)
        await RisingEdge(dut.clk)
        if taken:
            dut.params.value = groups.pop(0) if groups else 0
        if flipped:
            flips.pop(0)
            dut.flips.value = flips[0] if flips else 0
    assert len(got) == len(expected)
    for at, (mine, right) in enumerate(zip(got, expected, strict=True)):
        assert mine == right, f"launch {number}, step {at}"
    return wrong
