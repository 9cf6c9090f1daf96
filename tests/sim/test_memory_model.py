"""The memory behind the accelerator's port: exact under any timing, as slow as asked, and strict about addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from hw.config import Config
from sim.build import Model, build
from sim.client import Simulator, SimulatorError
from sim.memory import DeviceMemory, Stalls, Timing
from tests.sim.fixtures.toy import copies, toy_verilog

DESCRIPTORS, SOURCE, TARGET = 0x100, 0x4000, 0x8_0000


def copy(simulator: Simulator, memory: DeviceMemory, nbytes: int, source: int = SOURCE) -> dict[str, int]:
    """Let the toy copy `nbytes` of random data; check them; its counters."""
    rng = np.random.default_rng(nbytes)
    records = copies((source, TARGET, nbytes), vec=simulator.model.config.vec)
    memory.array[DESCRIPTORS : DESCRIPTORS + records.nbytes] = records.view(np.uint8)
    memory.array[source : source + nbytes] = rng.integers(0, 256, nbytes)
    memory.array[TARGET : TARGET + nbytes + 64] = 0xEE
    counters = simulator.launch({"descriptors": DESCRIPTORS, "jobs": 1}, max_cycles=1_000_000)
    np.testing.assert_array_equal(memory.array[TARGET : TARGET + nbytes], memory.array[source : source + nbytes])
    assert (memory.array[TARGET + nbytes : TARGET + nbytes + 64] == 0xEE).all()
    return counters


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("rate", [1.5, 16])
def test_a_copy_is_exact_under_random_stalls(toy: Model, memory: DeviceMemory, probability: float, rate: float) -> None:
    timing = Timing(latency=7, bytes_per_cycle=rate, stalls=Stalls.everywhere(probability, seed=3))
    with closing(Simulator(toy, memory, timing=timing)) as simulator:
        for nbytes in (16, 272, 5008):
            copy(simulator, memory, nbytes)


@pytest.mark.parametrize("port_bits", [32, 64, 512])
def test_every_port_width_moves_the_same_bytes(memory: DeviceMemory, port_bits: int) -> None:
    lanes, vec = (2, 4) if port_bits == 32 else (16, 8)
    config = Config(lanes=lanes, vec=vec, port_bits=port_bits)
    model = build(config, verilog=toy_verilog(config))
    with closing(Simulator(model, memory)) as simulator:
        counters = copy(simulator, memory, 4096)
    assert counters["bytes_written"] == 4096
    assert counters["bytes_read"] == 4096 + 256  # and the descriptor


@pytest.fixture(scope="module")
def shared_memory() -> Iterator[DeviceMemory]:
    """Device memory of this module's measurements."""
    memory = DeviceMemory(1 << 20)
    yield memory
    memory.close()


def cycles(toy: Model, memory: DeviceMemory, timing: Timing, nbytes: int = 4096) -> int:
    """Cycles of one copy."""
    with closing(Simulator(toy, memory, timing=timing)) as simulator:
        return copy(simulator, memory, nbytes)["cycles"]


def test_latency_adds_its_cycles_to_each_round_trip(toy: Model, shared_memory: DeviceMemory) -> None:
    # 4096 bytes are 16 bursts of 16 beats: 16 reads and 16 writes, and the descriptor's read.
    short, long = (cycles(toy, shared_memory, Timing(latency=latency)) for latency in (10, 110))
    assert long - short == 100 * 33


@pytest.mark.parametrize("rate", [1.0, 3.0, 4.0, 10.0])
def test_bandwidth_is_what_was_asked(toy: Model, shared_memory: DeviceMemory, rate: float) -> None:
    nbytes = 16384
    unlimited, limited = (
        cycles(toy, shared_memory, Timing(latency=1, bytes_per_cycle=bandwidth), nbytes) for bandwidth in (None, rate)
    )
    # The toy pauses between bursts of 16 beats for longer than a beat, so the first of each is not held up.
    bursts = 2 * nbytes / 256
    assert limited == pytest.approx(unlimited + 15 * bursts * (16 / rate - 1), abs=bursts)


def test_the_same_seed_gives_the_same_cycles_and_another_seed_others(toy: Model, shared_memory: DeviceMemory) -> None:
    first, again, other = (
        cycles(toy, shared_memory, Timing(stalls=Stalls.everywhere(0.3, seed))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_an_address_outside_memory_is_an_error_that_names_it_and_not_a_crash(toy: Model, memory: DeviceMemory) -> None:
    outside = memory.nbytes + 0x4000
    with closing(Simulator(toy, memory)) as simulator:
        for job in ((outside, TARGET, 64), (SOURCE, outside, 64)):
            records = copies(job)
            memory.array[DESCRIPTORS : DESCRIPTORS + records.nbytes] = records.view(np.uint8)
            with pytest.raises(SimulatorError, match=rf"of 64 bytes at {outside:#x} is outside device memory"):
                simulator.launch({"descriptors": DESCRIPTORS, "jobs": 1}, max_cycles=10_000)
        assert f"{outside:#x}" in simulator.log
        copy(simulator, memory, 64)  # it still works


def test_timing_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="latency must be from 1"):
        Timing(latency=0)
    with pytest.raises(ValueError, match="bytes_per_cycle must be from 1/256"):
        Timing(bytes_per_cycle=0)
    with pytest.raises(ValueError, match="stall probability w must be at least 0 and below 1, not 1"):
        Stalls(w=1)
