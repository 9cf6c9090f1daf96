"""The loaders: what lies in memory arrives complete and in order, at any alignment, length and back-pressure."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.lib import wiring
from cocotb.triggers import ReadOnly, RisingEdge

from hw import params
from hw.axi import BOUNDARY
from hw.config import Config
from hw.descriptor import Flag
from hw.loader import FeatureLoader, ParamLoader, WeightLoader
from sim.streams import start, stream_get, stream_put
from tests.hw.stage import CONFIGS, PAUSES, PIPECNN, in_bench, job, pulse, run_stage, serve_reads, until

LOADERS = {"features": FeatureLoader, "weights": WeightLoader, "params": ParamLoader}


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", CONFIGS, ids=["wide", "deep", "narrow"])
@pytest.mark.parametrize("which", LOADERS)
def test_loads_everything_in_order(which: str, config: Config, pause: float) -> None:
    load(which, config, pause)


@pytest.mark.parametrize("port_bits", [128, 256, 512])
def test_loads_features_through_ports_of_many_words(port_bits: int) -> None:
    load("features", Config(lanes=16, vec=4, port_bits=port_bits, feature_bytes=4096), 0.3)


def test_keeps_8_bits_of_pipecnns_bias() -> None:
    load("params", PIPECNN, 0.5)


def load(which: str, config: Config, pause: float) -> None:
    """Run a loader's bench."""
    make: type[wiring.Component] = LOADERS[which]
    run_stage(make, config, "tests.hw.test_loader", pause, WHICH=list(LOADERS).index(which))


def loads(which: str) -> Any:
    """A cocotb test that runs only on the loader of that name."""
    return cocotb.test(skip=os.environ.get("WHICH") != str(list(LOADERS).index(which)))


@loads("features")
async def copies_segments(dut: Any) -> None:
    """Segments of any length and distance, to consecutive words."""
    config, pause, rng = in_bench()
    await start(dut)
    memory = rng.randbytes(6 * BOUNDARY)
    cocotb.start_soon(serve_reads(dut, "port", memory, config, random.Random(rng.random()), pause))
    bits = (config.feature_words - 1).bit_length()
    fixed = [(1, 1), (1, 40), (3, 7), (5, 1), (2, 33), (4, config.port_bytes // config.vec)]
    for segments, words in fixed + [(rng.randrange(1, 6), rng.randrange(1, 40)) for _ in range(8)]:
        addr = BOUNDARY - config.vec * rng.randrange(1, 9)
        stride, base = config.vec * rng.randrange(words, words + 9), rng.randrange(16)
        chunk = rng.choice((0, rng.randrange(1, words + 3)))
        side = rng.randrange(2)
        dut.job.value = job(
            config,
            load_addr=addr,
            load_segments=segments,
            load_words=words,
            load_stride=stride,
            load_base=base,
            load_chunk=chunk,
            flags=Flag.SRC_B * side,
        )
        await pulse(dut, "start")
        dut.job.value = rng.getrandbits(len(dut.job))  # it is needed in the first cycle only
        got = await stream_get(dut, "write", segments * words, rng=random.Random(rng.random()), pause=pause)
        # The definition: chunk by chunk, of every segment in turn.
        order = [
            (segment, word)
            for first in range(0, words, chunk or words)
            for segment in range(segments)
            for word in range(first, min(words, first + (chunk or words)))
        ]
        expected = []
        for segment, word in order:
            at = addr + segment * stride + word * config.vec
            value = int.from_bytes(memory[at : at + config.vec], "little")
            place = base + segment * words + word
            expected.append(place | value << bits | ((1 << config.vec) - 1) << bits + 8 * config.vec)
        assert got == expected, (segments, words, addr, stride, chunk)
        assert int(dut.to_b.value) == side
        await until(dut, "done")


@loads("features")
async def tells_the_rows_that_have_arrived(dut: Any) -> None:
    """Rows count once all their words, of every segment, have been written; never before."""
    config, pause, rng = in_bench()
    await start(dut)
    memory = rng.randbytes(6 * BOUNDARY)
    cocotb.start_soon(serve_reads(dut, "port", memory, config, random.Random(rng.random()), pause))
    for _ in range(6):
        segments, height, width = rng.randrange(1, 4), rng.randrange(1, 9), rng.randrange(1, 9)
        rows = rng.randrange(1, height + 1)
        dut.job.value = job(
            config,
            load_addr=config.vec * rng.randrange(9),
            load_segments=segments,
            load_words=height * width,
            load_stride=config.vec * rng.randrange(height * width, height * width + 9),
            load_chunk=rows * width,
            load_rows=rows,
        )
        dut.write__ready.value = 0
        await pulse(dut, "start")
        written = [[0] * segments for _ in range(height)]
        for _ in range(5000):
            dut.write__ready.value = int(rng.random() >= pause)
            await ReadOnly()
            complete = next((y for y, row in enumerate(written) if row != [width] * segments), height)
            done = int(dut.done.value)
            if not done:
                told = int(dut.rows.value)
                assert told <= complete, "rows are told before they are there"
                assert told >= complete // rows * rows, "a chunk that is there is told"
            else:
                assert complete == height
            if int(dut.write__valid.value) and int(dut.write__ready.value):
                place = int(dut.write__payload.value) % config.feature_words
                written[place % (height * width) // width][place // (height * width)] += 1
            await RisingEdge(dut.clk)
            if done:
                break
        assert done


@loads("weights")
async def streams_groups(dut: Any) -> None:
    """Several jobs; never asks for more than there is room for."""
    config, pause, rng = in_bench()
    await start(dut)
    memory = rng.randbytes(6 * BOUNDARY)
    word_bytes, room = config.lanes * config.vec, config.weight_bytes // config.port_bytes
    cocotb.start_soon(serve_reads(dut, "port", memory, config, random.Random(rng.random()), pause))
    free = room

    async def account() -> None:
        nonlocal free
        while True:
            dut.room.value = free
            await RisingEdge(dut.clk)
            free -= int(dut.taken.value)
            assert free >= 0, "asked for more than there is room for"
            if free < room and rng.random() < 0.5:
                free += 1

    cocotb.start_soon(account())
    jobs = [
        (rng.randrange(1, 4), rng.randrange(1, 12), word_bytes * rng.randrange(1, 100), rng.choice((1, 1, 2, 5)))
        for _ in range(6)
    ]
    starts = [
        job(config, groups_out=groups, steps=steps, weight_addr=addr, weight_passes=passes)
        for groups, steps, addr, passes in jobs
    ]
    expected = [
        int.from_bytes(memory[at : at + config.port_bytes], "little")
        for groups, steps, addr, passes in jobs
        for first in range(addr, addr + groups * steps * word_bytes, steps * word_bytes)
        for _ in range(passes)
        for at in range(first, first + steps * word_bytes, config.port_bytes)
    ]
    cocotb.start_soon(stream_put(dut, "start", starts, rng=random.Random(rng.random()), pause=pause))
    assert await stream_get(dut, "fill", len(expected)) == expected
    await until(dut, "idle")


@loads("params")
async def queues_records(dut: Any) -> None:
    """Bias and shift of every lane of every group, in order."""
    config, pause, rng = in_bench()
    await start(dut)
    numbers = np.random.default_rng(rng.randrange(2**32))
    records = np.zeros((24, config.lanes), params.DTYPE)
    records["bias"] = numbers.integers(-(2**31), 2**31, records.shape)
    records["shift"] = numbers.integers(0, 32, records.shape)
    memory = bytearray(rng.randbytes(BOUNDARY))
    group_bytes = config.lanes * params.PARAM_BYTES
    bits = 8 if config.arithmetic == "pipecnn" else 32  # of a bias, as the array keeps it
    at = BOUNDARY - 8 * group_bytes
    flat = bytearray(24 * group_bytes)
    flat[:] = b"".join(
        int(r["bias"]).to_bytes(4, "little", signed=True) + bytes([int(r["shift"]), 0, 0, 0]) for r in records.flat
    )
    memory = memory[:at] + flat
    cocotb.start_soon(serve_reads(dut, "port", bytes(memory), config, random.Random(rng.random()), pause))
    jobs = [(0, 1), (1, 9), (10, 5), (15, 9)]
    starts = [job(config, groups_out=count, param_addr=at + first * group_bytes) for first, count in jobs]
    cocotb.start_soon(stream_put(dut, "start", starts, rng=random.Random(rng.random()), pause=pause))
    got = await stream_get(dut, "params", 24, rng=random.Random(rng.random()), pause=pause)
    expected = [
        sum(
            ((int(record["bias"]) & ((1 << bits) - 1)) | int(record["shift"]) << bits) << (bits + 5) * lane
            for lane, record in enumerate(group)
        )
        for group in records
    ]
    assert got == expected
