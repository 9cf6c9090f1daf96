"""The saboteur: every event of the list hits its place once, merged with its neighbours, and leftovers do no harm."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw import events
from hw.config import Config
from hw.saboteur import Saboteur
from sim.streams import start
from tests.hw.stage import DEEP, PAUSES, WIDE, in_bench, pulse, run_stage, serve_reads, until

TINY = Config(lanes=4, vec=4, port_bits=32, feature_bytes=1024, weight_bytes=512, saboteur=True)
BITS = 8


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP, TINY], ids=["wide", "deep", "narrow"])
def test_replays_the_list(config: Config, pause: float) -> None:
    run_stage(lambda config: Saboteur(config, BITS), config, "tests.hw.test_saboteur", pause)


@cocotb.test()
async def replays_every_event(dut: Any) -> None:
    """Launches with no, few, dense and misplaced events."""
    config, pause, rng = in_bench()
    await start(dut)
    memory = bytearray(64 * 1024)
    cocotb.start_soon(serve_reads(dut, "port", memory, config, random.Random(rng.random()), pause))
    places = [(job, slot) for job in range(3) for slot in range(40)]
    for share, stray in ((0.0, 0), (0.02, 0), (0.3, 0), (1.0, 0), (0.2, 30), (0.05, 0)):
        chosen = sorted(
            (job, slot, rng.randrange(config.lanes), rng.randrange(BITS))
            for job, slot in places
            for _ in range(rng.choice((1, 1, 2, 5)))
            if rng.random() < share
        )
        chosen += [(7, slot, 0, 0) for slot in range(stray)]  # places that this launch does not have
        records = np.zeros(len(chosen), events.DTYPE)
        for index, (job, slot, lane, bit) in enumerate(chosen):
            records[index] = (slot, job, lane, bit)
        memory[4096 : 4096 + records.nbytes] = records.tobytes()
        expected = dict.fromkeys(places, 0)
        for job, slot, lane, bit in chosen:
            if (job, slot) in expected:
                expected[job, slot] ^= 1 << BITS * lane + bit
        hit_places = {event[:2] for event in chosen if event[:2] in expected}

        dut.addr.value, dut.count.value, dut.take.value, dut.mask_take.value = 4096, len(chosen), 0, 0
        dut.job.value, dut.slot.value = places[0]
        await pulse(dut, "start")
        position = 0
        while position < len(places):
            dut.job.value, dut.slot.value = places[position]
            wants = rng.random() >= pause
            dut.take.value, dut.mask_take.value = 0, 0
            await ReadOnly()
            known, hit, mask = (int(dut[name].value) for name in ("known", "hit", "mask"))
            await RisingEdge(dut.clk)
            if not (wants and known):
                continue
            assert hit == (places[position] in hit_places), (
                places[position],
                share,
                stray,
                chosen[:4],
                int(dut.applied.value),
            )
            if hit:
                # The place was decided in the cycle before; nothing may change until it is taken.
                assert mask == expected[places[position]], places[position]
            dut.take.value, dut.mask_take.value = 1, hit
            await RisingEdge(dut.clk)
            position += 1
        dut.take.value, dut.mask_take.value = 0, 0
        await ReadOnly()
        assert int(dut.applied.value) == len(chosen) - stray
        await RisingEdge(dut.clk)
        await pulse(dut, "stop")
        await until(dut, "idle")
