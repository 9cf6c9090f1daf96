"""The engine's arithmetic: every instruction that calculates, on random operands and both ends, as integers do it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import pytest
from cocotb.triggers import Timer

from hw.microcode.arithmetic import REGISTER_BITS, Arithmetic
from hw.microcode.instructions import Op
from tests.hw.stage import MICROCODE, in_bench, run_stage

ALL = (1 << REGISTER_BITS) - 1
ENDS = (0, 1, ALL, 1 << (REGISTER_BITS - 1), (1 << (REGISTER_BITS - 1)) - 1, 0x80808080, 0x7F7F7F7F)


@pytest.mark.parametrize("config", [MICROCODE, replace(MICROCODE, lanes=2)], ids=["four lanes", "two lanes"])
def test_calculates_as_integers_do(config: Any) -> None:
    run_stage(lambda config: Arithmetic(config.lanes), config, "tests.hw.microcode.test_arithmetic", 0)


def bytes_of(value: int, lanes: int) -> list[int]:
    return [int.from_bytes(bytes([value >> 8 * lane & 0xFF]), signed=True) for lane in range(lanes)]


def expected(op: Op, acc: int, value: int, up: int, lanes: int) -> int:
    if op in (Op.MAX, Op.MIN):
        choose = max if op == Op.MAX else min
        pairs = zip(bytes_of(acc, lanes), bytes_of(value, lanes), strict=True)
        return sum((choose(pair) & 0xFF) << 8 * lane for lane, pair in enumerate(pairs))
    results = {
        Op.LOAD: value + up,
        Op.ADD: acc + value,
        Op.SUB: acc - value,
        Op.AND: acc & value,
        Op.STORE: acc,
        Op.ADD_TO: acc + value,
        Op.UP: value + 1,
        Op.DOWN: value - 1,
    }
    return results[op] & ALL


@cocotb.test()
async def equals_integers(dut: Any) -> None:
    config, _, rng = in_bench()
    for op in Op:
        if op >= Op.JUMP:
            continue
        for _ in range(200):
            acc, value = (rng.choice((*ENDS, rng.getrandbits(REGISTER_BITS), rng.randrange(300))) for _ in range(2))
            up = rng.randrange(2)
            dut.op.value, dut.acc.value, dut.value.value, dut.up.value = op, acc, value, up
            await Timer(1, "ns")
            found = int(dut.result.value)
            assert found == expected(op, acc, value, up, config.lanes), (op.name, hex(acc), hex(value), hex(found))
            if op == Op.SUB:
                assert int(dut.carry.value) == (acc >= value)
