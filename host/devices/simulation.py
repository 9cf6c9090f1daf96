"""The `simulation` device: the accelerator's RTL under cocotb and Verilator, one process a compute unit."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from host.devices import extents
from host.devices.checks import check_faults, check_launch, check_range
from host.devices.device import Bytes, Device, DeviceError, LaunchReport
from hw.config import Config
from sim.build import build
from sim.client import Simulator, SimulatorError, SimulatorFailed
from sim.memory import DeviceMemory, Stalls, Timing
from sim.probe import Trace

if TYPE_CHECKING:
    from host.schedule.launch import Launch, Unit

log = logging.getLogger("redline.simulation")

ATTEMPTS = 2
DEFAULT_MEMORY_BYTES = 1 << 28
DEFAULT_CONFIG = Config()
NO_STALLS = Stalls()


def arguments(unit: Unit) -> dict[str, int]:
    """Register values that make the accelerator execute a unit's lists."""
    values = {"descriptors": unit.descriptors_address, "jobs": len(unit.descriptors)}
    values |= {"mac_events": unit.mac_events_address, "mac_event_count": len(unit.mac_events)}
    values |= {"feature_events": unit.feature_events_address, "feature_event_count": len(unit.feature_events)}
    values |= {"late_masks": unit.late_masks_address, "late_mask_count": len(unit.late_masks)}
    return values


class SimulationDevice(Device):
    """The accelerator in simulation.

    The simulator is built on first use of a configuration and cached. Each process simulates one compute unit; all of
    them share device memory, which this object reads and writes directly. A process that dies or hangs during a launch
    is restarted and its list executed once more (jobs only read their inputs and write their outputs).

    Parameters
    ----------
    config : Config
    processes : int, optional
        Compute units; one a processor core by default.
    memory_bytes : int
        Size of device memory. What is never written takes no room.
    latency : int
        Clock cycles of the simulated memory.
    bytes_per_cycle : float, optional
        Bandwidth of its read and of its write channel, each; one beat a cycle by default.
    stalls : Stalls
        Random stalls of its channels.
    waves : Path, optional
        Write an FST of everything here (slow: about 1/90 of the speed). Units after the first get `-1`, `-2`, ...
        before the suffix.
    verilog : str, optional
        Verilog of a module `redline` to simulate instead of the one generated from `config`.
    launch_timeout_s : float
        Wall time without progress of the simulated clock after which a process counts as hung.
    cache : Path, optional
        Build cache instead of `sim.cache.cache_directory()`.

    Attributes
    ----------
    incidents : list of str
        What went wrong and was mended by a restart, oldest first.

    Raises
    ------
    ToolError, BuildError
        If the simulator cannot be built.
    DeviceError
        If it does not start, or is of another build than `config` says.
    """

    name = "simulation"
    knows_conditions = True

    def __init__(
        self,
        config: Config = DEFAULT_CONFIG,
        *,
        processes: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        latency: int = 32,
        bytes_per_cycle: float | None = None,
        stalls: Stalls = NO_STALLS,
        waves: Path | None = None,
        verilog: str | None = None,
        launch_timeout_s: float = 10.0,
        cache: Path | None = None,
    ) -> None:
        processes = len(os.sched_getaffinity(0)) if processes is None else processes
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self.config = config
        self.units = processes
        self.memory_bytes = memory_bytes
        self.incidents: list[str] = []
        self._timing = Timing(latency=latency, bytes_per_cycle=bytes_per_cycle, stalls=stalls)
        self._waves = waves
        self._hang_s = launch_timeout_s
        self.model = build(config, verilog=verilog, variant="waves" if waves else "cosim", cache=cache)
        self.memory = DeviceMemory(memory_bytes)
        self._simulators: list[Simulator | None] = [None] * processes
        self._closed = False
        try:
            for number in range(processes):
                self._start(number)
            for simulator in self.simulators:
                simulator.wait_ready()
        except SimulatorError as error:
            self.close()
            raise DeviceError(f"the simulation does not start: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def simulators(self) -> list[Simulator]:
        """Processes that run, by compute unit."""
        return [simulator for simulator in self._simulators if simulator is not None]

    def _start(self, number: int) -> Simulator:
        waves = self._waves
        if waves is not None and number:
            waves = waves.with_name(f"{waves.stem}-{number}{waves.suffix}")
        simulator = Simulator(self.model, self.memory, timing=self._timing, waves=waves, hang_s=self._hang_s)
        self._simulators[number] = simulator
        return simulator

    def _stop(self, number: int) -> None:
        simulator, self._simulators[number] = self._simulators[number], None
        if simulator is not None:
            simulator.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the simulators, by compute unit; those that are not running are left out."""
        return [simulator.pid for simulator in self.simulators]

    def _view(self, address: int, nbytes: int) -> Bytes:
        if self._closed:
            raise DeviceError("this simulation device is closed; make a new one")
        check_range(self, address, nbytes)
        return self.memory.array[address : address + nbytes]

    def write(self, address: int, array: npt.NDArray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._view(address, data.nbytes)[:] = data

    def read(self, address: int, nbytes: int) -> Bytes:
        return self._view(address, nbytes).copy()

    def launch(self, launch: Launch) -> LaunchReport:
        check_launch(self, launch)
        check_faults(self, launch)
        for unit in launch.units:
            if self.config.address_bits < Config.address_bits:
                # An address beyond would wrap, and name other memory instead of none.
                extents.check(unit.descriptors, self.config, self.memory_bytes)
            self.write(unit.descriptors_address, unit.descriptors)
            self.write(unit.mac_events_address, unit.mac_events)
            self.write(unit.feature_events_address, unit.feature_events)
            self.write(unit.late_masks_address, unit.late_masks)
        try:
            return self._execute(launch.units, launch.max_cycles)
        except BaseException as error:
            # A simulator still in the middle of a launch would answer the next one with this one's results.
            for number in range(self.units):
                self._stop(number)
            if isinstance(error, SimulatorError):
                raise DeviceError(f"the launch failed: {error}") from error
            raise

    def _execute(self, units: Sequence[Unit], max_cycles: int) -> LaunchReport:
        """Run all units at once; whoever fails is restarted and tried again while the others go on."""
        begun = [self._begin(number, unit, max_cycles) for number, unit in enumerate(units)]
        total = LaunchReport()
        for number, unit in enumerate(units):
            failure = begun[number]
            for attempt in range(1, ATTEMPTS + 1):
                if failure is None:
                    try:
                        simulator = self._simulators[number]
                        assert simulator is not None
                        total += LaunchReport(**simulator.finish())
                        break
                    except SimulatorFailed as error:
                        failure = error
                self._stop(number)
                if attempt == ATTEMPTS:
                    raise DeviceError(
                        f"the launch failed {ATTEMPTS} times on compute unit {number}, the last time thus: {failure}"
                    ) from failure
                self.incidents.append(f"compute unit {number}: {failure}")
                log.warning("%s\nthe simulator is restarted and the launch repeated", self.incidents[-1])
                failure = self._begin(number, unit, max_cycles)
        return total

    def _begin(self, number: int, unit: Unit, max_cycles: int) -> SimulatorFailed | None:
        """Start a unit's list; what went wrong, if anything did that another try may mend.

        A simulator that died while it had nothing to do is replaced: that is no try of this launch.
        """
        idle = self._simulators[number]
        if idle is not None:
            with suppress(SimulatorFailed):
                if idle.process.poll() is None:
                    idle.begin(arguments(unit), max_cycles)
                    return None
            self.incidents.append(f"compute unit {number}: the simulator (process {idle.pid}) died while it was idle")
            log.warning("%s; it is restarted", self.incidents[-1])
            self._stop(number)
        try:
            self._start(number).begin(arguments(unit), max_cycles)
        except SimulatorFailed as error:
            return error
        return None

    def trace(self, unit: int = 0) -> Trace:
        """What the probes of one compute unit showed during the last launch; for `Config(probe=True)`.

        Raises
        ------
        DeviceError
            If there are no probes, or the unit has not run.
        """
        simulator = self._simulators[unit] if 0 <= unit < self.units else None
        if simulator is None:
            raise DeviceError(f"compute unit {unit} is not running, so it has no trace")
        try:
            return simulator.trace
        except SimulatorError as error:
            raise DeviceError(str(error)) from error

    def close(self) -> None:
        self._closed = True
        for number in range(self.units):
            self._stop(number)
        self.memory.close()
