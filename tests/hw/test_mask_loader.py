"""The mask loader hands every word of the list to the banks, once, in order, for any width of the memory port."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw import masks
from hw.config import Config
from hw.overclocked import MaskLoader
from sim.streams import start
from tests.hw.stage import DEEP, NARROW, PAUSES, WIDE, in_bench, run_stage, serve_reads


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP, NARROW], ids=["wide", "deep", "narrow"])
def test_every_word_of_the_list_is_handed_on_once(config: Config, pause: float) -> None:
    run_stage(MaskLoader, replace(config, overclock=4), "tests.hw.test_mask_loader", pause)


@cocotb.test()
async def loads_lists_of_any_length(dut: Any) -> None:
    """Several launches: empty lists, one word, odd and even numbers, more than a burst."""
    config, pause, rng = in_bench()
    memory = bytes(rng.randrange(256) for _ in range(8192))
    dut.start.value = 0
    await start(dut)
    cocotb.start_soon(serve_reads(dut, "port", memory, config, rng, pause))
    for count in (0, 1, 2, 5, 300, 0, 7):
        address = 64 * rng.randrange(8)
        dut.addr.value, dut.count.value, dut.start.value = address, count, 1
        found, done, forgot = [], False, 0
        for _ in range(20_000):
            await ReadOnly()
            forgot += int(dut.load__forget.value)
            if int(dut.load__valid.value):
                found.append(int(dut.load__record.value).to_bytes(masks.WORD_BYTES, "little"))
            done = bool(int(dut.done.value))
            await RisingEdge(dut.clk)
            dut.start.value = 0
            if done:
                break
        assert done, f"a list of {count} words is never done"
        assert forgot == 1
        assert b"".join(found) == memory[address : address + count * masks.WORD_BYTES]
        for _ in range(3):
            await ReadOnly()
            assert not int(dut.load__valid.value)
            await RisingEdge(dut.clk)


def test_records_lie_the_same_for_hardware_and_host() -> None:
    assert masks.LAYOUT.size == 8 * masks.DTYPE.itemsize
    for name in masks.DTYPE.names or ():
        assert masks.LAYOUT[name].offset == 8 * masks.DTYPE.fields[name][1]


def test_a_banks_words_are_all_in_the_list_and_its_count_comes_last() -> None:
    rng = np.random.default_rng(0)

    def words(*shape: int) -> np.ndarray:
        return rng.integers(0, 1 << 32, shape, dtype=np.uint32)

    tree = masks.BankMasks(words(4, 3), words(4, 3), words(4, 3), None, None, words(4), words(4), words(4))
    records = masks.encode({"tree_2_0": tree}, vec=4)
    assert len(records) == 3 * 4 * 3 + 3 * 4 + 1
    assert set(records["bank"]) == {2}  # tree_1_0, tree_1_1, tree_2_0, accumulator
    last = records[-1]
    assert (int(last["operand"]), int(last["word"])) == (masks.OPERANDS["used"], 3)
    here = records[(records["operand"] == masks.OPERANDS["outputs"]) & (records["lane"] == 1)]
    assert here[np.argsort(here["group"])]["word"].tolist() == tree.outputs[1].tolist()
