"""The sequencer: jobs run in order, loads run ahead by one job, and a fence waits for everything before it."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw import descriptor
from hw.config import Config
from hw.descriptor import Flag
from hw.sequencer import Sequencer
from sim.streams import start
from tests.hw.stage import CONFIGS, PAUSES, in_bench, kept, pulse, run_stage, serve_reads


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", CONFIGS, ids=["wide", "deep", "narrow"])
def test_runs_jobs_in_order_and_honours_fences(config: Config, pause: float) -> None:
    run_stage(Sequencer, config, "tests.hw.test_sequencer", pause)


@cocotb.test()
async def runs_launches(dut: Any) -> None:
    """Launches of random descriptors against stages that take random times; loads without computing lie between."""
    config, pause, rng = in_bench()
    for name in ("weights__ready", "params__ready", "writes_done", "load_done", "compute_done"):
        dut[name].value = 1
    await start(dut)
    memory = bytearray(64 * 1024)
    ahead = early_starts = 0
    cocotb.start_soon(serve_reads(dut, "port", memory, config, random.Random(rng.random()), pause))
    mixes = (
        (1, Flag.LOAD_ONLY, 0),
        (2, 0, Flag.LOAD_ONLY),
        (7, 0, 0),
        (12, Flag.FENCE, 0),
        (20, Flag.FENCE, Flag.LOAD),
    )
    for count, never, always in mixes:
        records = np.zeros(count, descriptor.DTYPE)
        for record in records:
            for field in descriptor.FIELDS:
                record[field.name] = rng.randrange(2**field.bits)
            record["flags"] = int(record["flags"]) & ~never | always
            record["load_chunk"] = rng.choice((0, int(record["load_chunk"])))
        memory[1024 : 1024 + records.nbytes] = records.tobytes()
        patterns = [kept(config, record) for record in records]
        dut.addr.value, dut.jobs.value = 1024, count
        await pulse(dut, "start")
        to_compute = [at for at, record in enumerate(records) if not record["flags"] & Flag.LOAD_ONLY]
        given: dict[str, list[int]] = {"weights": [], "params": []}
        loads: list[int] = []
        computed = done = 0
        load_left = compute_left = writes_left = 0
        running = False
        for _ in range(5000):
            for name in given:
                dut[f"{name}__ready"].value = int(rng.random() >= pause)
            dut.load_done.value = int(load_left == 0)
            dut.compute_done.value = int(compute_left == 0)
            dut.writes_done.value = int(writes_left == 0 and not running)
            await ReadOnly()
            for name, jobs in given.items():
                if int(dut[f"{name}__valid"].value) and int(dut[f"{name}__ready"].value):
                    jobs.append(int(dut[f"{name}__payload"].value))
            load, compute, done = int(dut.load.value), int(dut.compute.value), int(dut.done.value)
            load_left, compute_left, writes_left = (max(0, left - 1) for left in (load_left, compute_left, writes_left))
            if int(dut.arriving.value):
                assert not int(dut.load_done.value)
                assert int(dut.job.value) == loads[-1], "only the computing job's own load is waited for"
            elif running and computed and len(loads) == to_compute[computed - 1] + 1:
                assert int(dut.load_done.value), "the array is told that features are still coming"
            if running and compute_left == 0:
                running, writes_left = False, rng.randrange(8)
            if compute:
                at = to_compute[computed]
                assert int(dut.job.value) == patterns[at]
                assert len(loads) > at, "a job computes after its load"
                early = records[at]["flags"] & Flag.LOAD and records[at]["load_chunk"]
                assert len(loads) > at + 1 or load_left == 0 or early, "a job computes after its load"
                early_starts += len(loads) == at + 1 and load_left > 0
                assert int(dut.job_index.value) == at
                computed, running, compute_left = computed + 1, True, 300 if count == 12 else rng.randrange(3, 20)
            if load:
                flags = int(records[len(loads)]["flags"])
                assert int(dut.loading.value) == patterns[len(loads)]
                assert load_left == 0, "one load after the other"
                before = sum(at < len(loads) for at in to_compute)
                assert before <= computed, "no load runs ahead by more than one computing job"
                if flags & Flag.FENCE:
                    assert int(dut.writes_done.value), "the fence waits for every write"
                    assert not running, "the fence waits for every job"
                    assert computed == before, "the fence waits for every job"
                ahead += running and bool(loads) and len(loads) - 1 not in to_compute
                loads.append(int(dut.loading.value))
                load_left = rng.randrange(1, 30)
            await RisingEdge(dut.clk)
            if done:
                break
        assert done
        assert load_left == 0
        assert computed == len(to_compute)
        assert writes_left == 0
        assert not running
        assert loads == patterns
        assert given["weights"] == given["params"] == [patterns[at] for at in to_compute]
    assert early_starts, "a job that loads in chunks begins before its load has ended"
    assert ahead, "a load goes on after a load without computing, while an older job computes"
