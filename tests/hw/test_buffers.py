"""The on-chip memories: bytes written are read back, and the ring never loses or overwrites a word in use."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.buffers import FeatureBuffer, WeightRing, beats_per_word
from hw.config import Config
from sim.streams import start
from tests.hw.stage import DEEP, PAUSES, WIDE, in_bench, run_stage

KINDS = {"features": FeatureBuffer, "ring": WeightRing}


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("which", KINDS)
def test_keeps_what_is_written(which: str, config: Config, pause: float) -> None:
    run_stage(KINDS[which], config, "tests.hw.test_buffers", pause, WHICH=list(KINDS).index(which))


def on(which: str) -> Any:
    """A cocotb test that runs only on that memory."""
    return cocotb.test(skip=os.environ.get("WHICH") != str(list(KINDS).index(which)))


@on("features")
async def bytes_are_kept(dut: Any) -> None:
    """Stores win over loads; a load waits, and no byte that is not enabled changes."""
    config, pause, rng = in_bench()
    dut.store__valid.value = dut.load__valid.value = 0
    await start(dut)
    bits, word = (config.feature_words - 1).bit_length(), 8 * config.vec
    model = [[0] * config.vec for _ in range(config.feature_words)]
    waiting = None
    for _ in range(2000):
        offers = {"store": rng.random() >= pause, "load": waiting is not None or rng.random() >= pause}
        writes = {}
        for name, offered in offers.items():
            new = rng.randrange(32), rng.randrange(1 << word), rng.randrange(1 << config.vec)
            writes[name] = waiting if name == "load" and waiting is not None else new
            addr, data, enable = writes[name]
            dut[f"{name}__valid"].value = int(offered)
            dut[f"{name}__payload"].value = addr | data << bits | enable << bits + word
        read = rng.randrange(32)
        dut.read_addr.value = read
        await ReadOnly()
        assert int(dut.store__ready.value)
        taken = [name for name in offers if offers[name] and int(dut[f"{name}__ready"].value)]
        assert not offers["load"] or ("load" in taken) == (not offers["store"]), "a load waits for a store, and only so"
        expected = sum(byte << 8 * index for index, byte in enumerate(model[read]))
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.read_data.value) == expected, "the word before this cycle's write"
        waiting = writes["load"] if offers["load"] and "load" not in taken else None
        for name in taken:
            addr, data, enable = writes[name]
            for index in range(config.vec):
                if enable >> index & 1:
                    model[addr][index] = data >> 8 * index & 0xFF
        await RisingEdge(dut.clk)
        dut.store__valid.value = dut.load__valid.value = 0


@on("ring")
async def words_run_through(dut: Any) -> None:
    """A loader that fills whatever room there is, and an array that reads each group several times."""
    config, pause, rng = in_bench()
    beats = beats_per_word(config)
    dut.fill__valid.value = dut.taken.value = dut.clear.value = 0
    dut.read_ptr.value = dut.keep_ptr.value = 0
    await start(dut)
    modulus = 2 * config.weight_words
    total = 3 * config.weight_words
    words = [rng.randrange(1 << 8 * config.lanes * config.vec) for _ in range(total)]
    stream = [word >> config.port_bits * beat & (1 << config.port_bits) - 1 for word in words for beat in range(beats)]
    asked = sent = 0

    async def load() -> None:
        nonlocal asked, sent
        other = random.Random(rng.random())
        while sent < len(stream):
            room = int(dut.room.value)
            take = min(room, len(stream) - asked, other.randrange(1, 9)) if other.random() >= pause else 0
            dut.taken.value = take
            sending = sent < asked and other.random() >= pause
            dut.fill__valid.value = int(sending)
            if sending:
                dut.fill__payload.value = stream[sent]
            await RisingEdge(dut.clk)
            asked, sent = asked + take, sent + sending
            dut.taken.value = 0
            dut.fill__valid.value = 0
            await RisingEdge(dut.clk)

    cocotb.start_soon(load())
    base = 0
    while base < total:
        length = min(rng.randrange(1, config.weight_words // 2), total - base)
        for repeat in range(passes := rng.randrange(1, 4)):
            for index in range(length):
                dut.read_ptr.value = (base + index) % modulus
                dut.keep_ptr.value = (base + index if repeat == passes - 1 else base) % modulus
                await ReadOnly()
                while not int(dut.read_ready.value):
                    await RisingEdge(dut.clk)
                    await ReadOnly()
                await RisingEdge(dut.clk)
                await ReadOnly()
                assert int(dut.read_data.value) == words[base + index], f"word {base + index}, pass {repeat}"
                await RisingEdge(dut.clk)
        base += length
