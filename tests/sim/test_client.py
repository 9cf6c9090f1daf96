"""The simulator process: silent, traceless, and never mistaken for alive when it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw.config import Config
from sim.build import Model, build
from sim.client import FOREIGN, Simulator, SimulatorError, SimulatorFailed, environment
from sim.memory import DeviceMemory
from tests.sim.fixtures.processes import alive, footprint, wait_for_end
from tests.sim.fixtures.toy import HANG, copies, toy_verilog

ROOT = Path(__file__).parents[2]
FOREVER = 1 << 40
LAUNCH = {"descriptors": 0x100, "jobs": 1}


@pytest.fixture
def simulator(toy: Model, memory: DeviceMemory) -> Iterator[Simulator]:
    """A simulator that counts as hung after two seconds, on memory with one copy job."""
    put(memory, copies((0x4000, 0x8000, 64)))
    memory.array[0x4000:0x4040] = np.arange(64)
    with closing(Simulator(toy, memory, hang_s=2.0)) as simulator:
        yield simulator


def put(memory: DeviceMemory, records: np.ndarray) -> None:
    """Place descriptors at LAUNCH's address."""
    memory.array[0x100 : 0x100 + records.nbytes] = records.view(np.uint8)


def begin_forever(simulator: Simulator, memory: DeviceMemory) -> None:
    """Start a launch that never ends, and wait until it is under way."""
    put(memory, copies((0x4000, 0x8000, 64), flags=HANG))
    simulator.begin(LAUNCH, FOREVER)
    start = simulator.page["cycles"]
    while simulator.page["cycles"] < start + 10_000:
        time.sleep(0.001)


@pytest.mark.usefixtures("own_place")
def test_a_simulator_prints_nothing_and_leaves_nothing(
    toy: Model, memory: DeviceMemory, capfd: pytest.CaptureFixture[str]
) -> None:
    put(memory, copies((0x4000, 0x8000, 64)))
    before = footprint()
    simulator = Simulator(toy, memory)
    simulator.launch(LAUNCH, 10_000)
    simulator.close()
    simulator.close()
    assert not alive(simulator.pid)
    assert footprint() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_launch_takes_a_few_milliseconds_at_most(simulator: Simulator) -> None:
    simulator.launch(LAUNCH, 10_000)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        simulator.launch(LAUNCH, 10_000)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_a_killed_simulator_is_reported(simulator: Simulator, memory: DeviceMemory) -> None:
    begin_forever(simulator, memory)
    os.kill(simulator.pid, signal.SIGKILL)
    with pytest.raises(SimulatorFailed, match=r"was killed by SIGKILL\nits log:"):
        simulator.finish()


def test_a_simulator_killed_between_launches_is_reported(simulator: Simulator) -> None:
    simulator.launch(LAUNCH, 10_000)
    os.kill(simulator.pid, signal.SIGKILL)
    wait_for_end(simulator.pid)
    with pytest.raises(SimulatorFailed, match="was killed by SIGKILL"):
        simulator.launch(LAUNCH, 10_000)


def test_a_stopped_simulator_counts_as_hung(simulator: Simulator, memory: DeviceMemory) -> None:
    begin_forever(simulator, memory)
    os.kill(simulator.pid, signal.SIGSTOP)
    with pytest.raises(SimulatorFailed, match=r"hangs: no progress in 2 s at cycle \d+"):
        simulator.finish()
    simulator.close()
    assert not alive(simulator.pid)


def test_an_accelerator_that_never_finishes_is_reported(simulator: Simulator, memory: DeviceMemory) -> None:
    put(memory, copies((0x4000, 0x8000, 64), flags=HANG))
    with pytest.raises(SimulatorFailed, match="did not raise its interrupt within 50000 cycles"):
        simulator.launch(LAUNCH, 50_000)


def test_a_slow_simulator_that_makes_progress_is_waited_for(simulator: Simulator, memory: DeviceMemory) -> None:
    put(memory, copies((0x4000, 0x8000, 64), flags=HANG))
    simulator.wait_ready()
    simulator.hang_s = 0.3
    start = time.monotonic()
    with pytest.raises(SimulatorFailed, match="did not raise its interrupt"):
        simulator.launch(LAUNCH, 20_000_000)
    assert time.monotonic() - start > simulator.hang_s


def test_gateware_of_another_configuration_is_refused(toy: Model, memory: DeviceMemory) -> None:
    model = replace(toy, config=Config(pool_columns=32))
    with (
        closing(Simulator(model, memory)) as simulator,
        pytest.raises(SimulatorError, match=r"another build: configuration hash 0x[0-9a-f]{16}"),
    ):
        simulator.wait_ready()


def test_a_simulator_that_cannot_start_is_quoted(toy: Model, memory: DeviceMemory, tmp_path: Path) -> None:
    program = tmp_path / "simulator"
    program.write_text("#!/bin/sh\necho cannot find something\nexit 7\n")
    program.chmod(0o755)
    with (
        closing(Simulator(replace(toy, executable=program), memory)) as simulator,
        pytest.raises(SimulatorFailed, match=r"ended with status 7\nits log: cannot find something"),
    ):
        simulator.wait_ready()


HOST = """
    import sys, time
    from contextlib import closing
    from sim.client import Simulator
    from sim.build import build
    from sim.memory import DeviceMemory
    from hw.config import Config
    from tests.sim.fixtures.toy import HANG, copies, toy_verilog
    import numpy as np

    memory = DeviceMemory(1 << 20)
    records = copies((0x4000, 0x8000, 64), flags=HANG)
    memory.array[0x100:0x100 + records.nbytes] = records.view(np.uint8)
    with closing(Simulator(build(Config(), verilog=toy_verilog(Config())), memory)) as simulator:
        simulator.begin({"descriptors": 0x100, "jobs": 1}, 1 << 40)
        print(simulator.pid, flush=True)
        simulator.finish()
"""


@pytest.fixture
def host() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another Python process in the middle of a launch, and its simulator's process id."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOST)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@pytest.mark.usefixtures("own_place")
def test_the_simulator_dies_with_a_killed_host(host: tuple[subprocess.Popen[str], int]) -> None:
    process, simulator = host
    before = footprint()
    process.kill()
    assert wait_for_end(simulator)
    assert footprint() <= before


def test_even_a_stopped_simulator_dies_with_a_killed_host(host: tuple[subprocess.Popen[str], int]) -> None:
    process, simulator = host
    os.kill(simulator, signal.SIGSTOP)
    process.kill()
    assert wait_for_end(simulator)


def test_ctrl_c_in_the_middle_of_a_launch_ends_the_simulator(host: tuple[subprocess.Popen[str], int]) -> None:
    process, simulator = host
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert wait_for_end(simulator)


def test_probes_show_what_passed_through_the_accelerator(memory: DeviceMemory) -> None:
    config = Config(probe=True)
    model = build(config, verilog=toy_verilog(config))
    put(memory, copies((0x4000, 0x8000, 512)))
    data = np.random.default_rng(5).integers(-128, 128, 512).astype(np.int8)
    memory.array[0x4000:0x4200] = data.view(np.uint8)
    with closing(Simulator(model, memory)) as simulator:
        for _ in range(2):  # a trace is of the last launch only
            simulator.launch(LAUNCH, 10_000)
        trace = simulator.trace
    beats = data.reshape(32, 16)
    np.testing.assert_array_equal(trace.features, beats[:, :8])
    np.testing.assert_array_equal(trace.weights[:, :2].reshape(32, 16), beats)
    np.testing.assert_array_equal(trace.acc[:, :4], beats.view(np.int32))
    np.testing.assert_array_equal(trace.requant, beats[15::16])
    np.testing.assert_array_equal(trace.pool, beats[15::16])
    assert (np.diff(trace.step_cycle.astype(np.int64)) > 0).all()


def test_a_simulator_without_probes_says_so(simulator: Simulator) -> None:
    with pytest.raises(SimulatorError, match=r"has no probes; build it with Config\(probe=True\)"):
        _ = simulator.trace


def test_waves_are_written_completely(toy: Model, memory: DeviceMemory, tmp_path: Path) -> None:
    put(memory, copies((0x4000, 0x8000, 64)))
    path = tmp_path / "run.fst"
    model = build(Config(), verilog=toy_verilog(Config()), variant="waves")
    with closing(Simulator(model, memory, waves=path)) as simulator:
        simulator.launch(LAUNCH, 10_000)
    assert path.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [path]  # a writer that was cut off leaves its `.hier` beside the file
    with pytest.raises(ValueError, match="waves need a model of variant 'waves'"):
        Simulator(toy, memory, waves=path)


def test_the_plain_loop_speaks_the_same_protocol(memory: DeviceMemory) -> None:
    put(memory, copies((0x4000, 0x8000, 64)))
    memory.array[0x4000:0x4040] = np.arange(64)
    model = build(Config(), verilog=toy_verilog(Config()), variant="raw")
    with closing(Simulator(model, memory)) as simulator:
        counters = simulator.launch(LAUNCH, 10_000)
    assert counters["bytes_written"] == 64
    np.testing.assert_array_equal(memory.array[0x8000:0x8040], np.arange(64))


@pytest.mark.parametrize(
    "name", [*FOREIGN, "COCOTB_TEST_FILTER", "COCOTB_RANDOM_SEED", "GPI_EXTRA", "REDLINE_SIM_WAVES"]
)
def test_what_users_set_for_other_programs_does_not_reach_the_simulator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "abc")
    assert environment("cosim").get(name) != "abc"
    assert name not in environment("raw")
