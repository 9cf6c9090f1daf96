"""The simulation device: its memory, its compute units, and its recovery when a simulator fails during a launch.

These run on a toy accelerator that copies memory; the conformance suite runs the real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from host.devices.device import DeviceError
from host.devices.simulation import SimulationDevice
from hw import events, masks
from hw.config import Config
from sim.cache import BuildError
from sim.client import Simulator
from sim.memory import Stalls
from tests.sim.fixtures.processes import alive, footprint, wait_for_end
from tests.sim.fixtures.toy import HANG, copies, toy_verilog

PLAIN = Config()
FAULTY = Config(saboteur=True)


def device(config: Config = PLAIN, **options: Any) -> SimulationDevice:
    """A toy device."""
    options = {"processes": 1, "memory_bytes": 1 << 22, "launch_timeout_s": 2.0} | options
    return SimulationDevice(config, verilog=toy_verilog(config), **options)


@pytest.fixture
def pair() -> Iterator[SimulationDevice]:
    """A device of two compute units."""
    with closing(device(processes=2)) as pair:
        yield pair


def launch(*jobs: list[tuple[int, int, int]], config: Config = PLAIN, faults: int = 0, **options: int) -> Any:
    """A launch in which unit i copies jobs[i]."""
    flags = options.get("flags", 0)
    units = [
        SimpleNamespace(
            descriptors=copies(*copied, flags=flags),
            descriptors_address=0x1000 * (1 + number),
            mac_events=np.zeros(faults, events.DTYPE),
            mac_events_address=0x8000 + 0x1000 * number,
            feature_events=np.zeros(0, events.DTYPE),
            feature_events_address=0x8800 + 0x1000 * number,
            late_masks=np.zeros(0, masks.DTYPE),
            late_masks_address=0,
        )
        for number, copied in enumerate(jobs)
    ]
    return SimpleNamespace(
        units=units,
        max_cycles=options.get("max_cycles", 1_000_000),
        program=SimpleNamespace(config=config),
        plan=None,
        faults=faults * len(units),
    )


def test_what_is_written_is_read_back() -> None:
    with closing(device()) as one:
        array = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)
        one.write(0x123, array)
        np.testing.assert_array_equal(one.read(0x123, 48).view(np.int16), array.ravel())
        copy = one.read(0x123, 48)
        one.write(0x123, np.zeros(48, np.uint8))
        assert copy.any()


def test_addresses_outside_memory_are_refused() -> None:
    with closing(device()) as one:
        for address in (-1, (1 << 22) - 7):
            with pytest.raises(DeviceError, match=r"8 bytes at .* are outside device memory \(4194304 bytes\)"):
                one.read(address, 8)
            with pytest.raises(DeviceError, match="give the device more with memory_bytes="):
                one.write(address, np.zeros(8, np.uint8))


def test_units_share_one_memory_and_their_counts_add_up(pair: SimulationDevice) -> None:
    data = np.random.default_rng(1).integers(0, 256, 8192).astype(np.uint8)
    pair.write(0x10000, data)
    report = pair.launch(launch([(0x10000, 0x20000, 4096)], [(0x11000, 0x21000, 4096), (0x10000, 0x30000, 64)]))
    np.testing.assert_array_equal(pair.read(0x20000, 8192), data)
    np.testing.assert_array_equal(pair.read(0x30000, 64), data[:64])
    assert report.bytes_written == 8192 + 64
    assert report.cycles > 0


def test_units_run_at_the_same_time(pair: SimulationDevice) -> None:
    # Both are in the middle of a launch at once, or the second would never be seen to run.
    jobs = [(0x10000, 0x20000, 64)]
    seen = []

    def watch() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            counts = [simulator.page["cycles"] for simulator in pair.simulators]
            time.sleep(0.02)
            later = [simulator.page["cycles"] for simulator in pair.simulators]
            if len(later) == 2 and all(b > a for a, b in zip(counts, later, strict=True)):
                seen.append(later)
                break

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(DeviceError, match="did not raise its interrupt"):
        pair.launch(launch(jobs, jobs, flags=HANG, max_cycles=3_000_000))
    watcher.join()
    assert seen


def test_random_stalls_change_no_byte() -> None:
    data = np.random.default_rng(2).integers(0, 256, 4096).astype(np.uint8)
    with closing(device(stalls=Stalls.everywhere(0.4, seed=9), latency=3, bytes_per_cycle=5)) as one:
        one.write(0x10000, data)
        one.launch(launch([(0x10000, 0x20000, 4096)]))
        np.testing.assert_array_equal(one.read(0x20000, 4096), data)


def test_event_lists_reach_the_accelerator() -> None:
    with closing(device(FAULTY)) as one:
        report = one.launch(launch([(0x10000, 0x20000, 64)], config=FAULTY, faults=7))
        assert report.faults_applied == 7


def test_faults_on_a_build_without_instrumentation_are_refused() -> None:
    with closing(device()) as one, pytest.raises(DeviceError, match=r"built without fault instrumentation; use Config"):
        one.launch(launch([(0x10000, 0x20000, 64)], faults=1))


def test_a_program_for_another_accelerator_is_refused() -> None:
    with closing(device()) as one, pytest.raises(DeviceError, match="compiled for another accelerator"):
        one.launch(launch([(0x10000, 0x20000, 64)], config=Config(pool_columns=32)))


@pytest.mark.usefixtures("own_place")
def test_gateware_of_another_build_is_refused() -> None:
    before = footprint()
    with pytest.raises(DeviceError, match="the gateware in the simulator is of another build"):
        SimulationDevice(Config(pool_columns=32), verilog=toy_verilog(PLAIN), processes=1)
    assert footprint() == before


def test_more_units_than_the_device_has_are_refused() -> None:
    with closing(device()) as one, pytest.raises(DeviceError, match="has 2 compute units, the device 1"):
        one.launch(launch([(0, 64, 64)], [(0, 64, 64)]))


def test_verilog_without_a_port_is_refused() -> None:
    text = toy_verilog(PLAIN).replace("s_axi_control_wstrb", "s_axi_control_strobe")
    with pytest.raises(BuildError, match="lacks a port of the kernel interface"):
        SimulationDevice(PLAIN, verilog=text)


def interfere(device: SimulationDevice, unit: int, number: signal.Signals) -> threading.Thread:
    """Send a signal to a unit's simulator as soon as it is in the middle of a launch."""
    simulator = device._simulators[unit]
    assert simulator is not None
    start = simulator.page["cycles"]

    def act() -> None:
        while simulator.page["cycles"] < start + 1000:
            time.sleep(0.0005)
        os.kill(simulator.pid, number)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "report"),
    [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "hangs: no progress in 2 s")],
)
def test_a_simulator_lost_in_the_middle_of_a_launch_is_replaced_and_the_launch_repeated(
    pair: SimulationDevice, number: signal.Signals, report: str, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = 1 << 20
    data = np.random.default_rng(3).integers(0, 256, nbytes).astype(np.uint8)
    pair.write(0x100000, data)
    pair.write(0x200000, np.zeros(nbytes, np.uint8))
    victim, other = pair.pids
    half = nbytes // 2
    disturbance = interfere(pair, 0, number)
    result = pair.launch(launch([(0x100000, 0x200000, half)], [(0x100000 + half, 0x200000 + half, half)]))
    disturbance.join()
    np.testing.assert_array_equal(pair.read(0x200000, nbytes), data)
    assert result.bytes_written == nbytes
    assert len(pair.incidents) == 1
    assert report in pair.incidents[0]
    assert "its log:" in caplog.text
    assert not alive(victim)
    assert alive(other)
    assert pair.pids[1] == other


def test_a_second_failure_is_an_error_with_the_log() -> None:
    with closing(device()) as one:
        pids = one.pids
        with pytest.raises(DeviceError, match=r"(?s)failed 2 times on compute unit 0.*within 50000 cycles.*its log:"):
            one.launch(launch([(0x10000, 0x20000, 64)], flags=HANG, max_cycles=50_000))
        assert len(one.incidents) == 1
        assert not any(alive(pid) for pid in pids + one.pids)


def test_a_simulator_that_dies_while_idle_costs_no_try() -> None:
    data = np.random.default_rng(4).integers(0, 256, 1 << 20).astype(np.uint8)
    with closing(device()) as one:
        one.write(0x100000, data)
        victim = one.pids[0]
        os.kill(victim, signal.SIGKILL)
        assert wait_for_end(victim)
        one.launch(launch([(0x100000, 0x200000, 64)]))
        assert len(one.incidents) == 1
        assert "died while it was idle" in one.incidents[0]
        # Idle again, and then in the middle of its first try: the second is still to be had.
        victim = one.pids[0]
        os.kill(victim, signal.SIGKILL)
        assert wait_for_end(victim)
        start, simulator = one._start, []

        def disturbed(number: int) -> Simulator:
            one._start = start  # type: ignore[method-assign]
            simulator.append(start(number))
            interfere(one, number, signal.SIGKILL)
            return simulator[0]

        one._start = disturbed  # type: ignore[method-assign]
        one.launch(launch([(0x100000, 0x200000, len(data))]))
        np.testing.assert_array_equal(one.read(0x200000, len(data)), data)
        assert ["idle" in incident for incident in one.incidents] == [True, True, False]


def kill(pid: int) -> None:
    # One that was killed while idle is another process by now.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments_change_nothing(seed: int) -> None:
    """25 kills, some of an idle simulator and some in the middle of a launch."""
    rng = np.random.default_rng(seed)
    with closing(device()) as one:
        while len(one.incidents) < 25:
            data = rng.integers(0, 256, 1 << 18).astype(np.uint8)
            one.write(0x100000, data)
            victim, wait = one.pids[0], float(rng.random() * 0.02)
            thread = threading.Timer(wait, kill, [victim])
            thread.start()
            one.launch(launch([(0x100000, 0x200000, len(data))]))
            np.testing.assert_array_equal(one.read(0x200000, len(data)), data)
            thread.join()


def test_a_device_works_again_after_a_failed_launch() -> None:
    with closing(device()) as one:
        one.write(0x10000, np.arange(64, dtype=np.uint8))
        with pytest.raises(DeviceError, match="is outside device memory"):
            one.launch(launch([(0x7000000, 0x20000, 64)]))
        one.launch(launch([(0x10000, 0x20000, 64)]))
        np.testing.assert_array_equal(one.read(0x20000, 64), np.arange(64))


def test_an_interrupted_launch_leaves_nothing_running_and_no_answer_behind() -> None:
    with closing(device(launch_timeout_s=60)) as one:
        one.write(0x10000, np.arange(64, dtype=np.uint8))
        (pid,) = one.pids
        disturbance = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        disturbance.start()
        with pytest.raises(KeyboardInterrupt):
            one.launch(launch([(0x10000, 0x20000, 64)], flags=HANG, max_cycles=1 << 40))
        disturbance.join()
        assert not alive(pid)
        one.launch(launch([(0x10000, 0x30000, 64)]))
        np.testing.assert_array_equal(one.read(0x30000, 64), np.arange(64))


@pytest.mark.usefixtures("own_place")
def test_closing_ends_every_process_and_leaves_no_file(capfd: pytest.CaptureFixture[str]) -> None:
    before = footprint()
    one = device(processes=3)
    pids = one.pids
    one.launch(launch([(0x10000, 0x20000, 64)]))
    one.close()
    one.close()
    assert all(wait_for_end(pid) for pid in pids)
    assert footprint() == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DeviceError, match="is closed; make a new one"):
        one.read(0, 1)


def test_a_device_that_is_forgotten_ends_its_processes() -> None:
    one = device()
    pids = one.pids
    del one
    assert all(wait_for_end(pid) for pid in pids)


def test_a_device_made_in_a_thread_outlives_it() -> None:
    made = []
    thread = threading.Thread(target=lambda: made.append(device()))
    thread.start()
    thread.join()
    with closing(made[0]) as one:
        time.sleep(0.1)
        assert all(alive(pid) for pid in one.pids)
        one.launch(launch([(0x10000, 0x20000, 64)]))
