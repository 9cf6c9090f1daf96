"""One context of an OpenCL device: its queues, its memory, its kernel. What a hung kernel takes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from host.devices.device import DeviceError, LaunchReport
from host.devices.opencl import gateware
from host.devices.opencl import program as programs
from host.devices.opencl.source import STATUS_CARRIED, STATUS_FAULTS, STATUS_JOBS, STATUS_WORDS, Shape, bank_bytes
from host.devices.opencl.waiting import completed
from hw import record
from hw.config import Config
from hw.registers import ARGUMENTS

if TYPE_CHECKING:
    from host.schedule.launch import Launch, Unit


@dataclass
class _Scratch:
    """What stands for a compute unit's own memory: on-chip features, a group's weights, a group's results; counters;
    masks of the register banks, in builds with overclocking."""

    features: Any
    weights: Any
    results: Any
    status: Any
    banks: Any | None


@dataclass
class Running:
    """A launch that was started.

    Attributes
    ----------
    session : Session
        Where it runs.
    events : list of pyopencl.Event
        One a compute unit: its kernel.
    last : list of pyopencl.Event
        When these are complete, everything is.
    jobs : list of int
        Descriptors of each.
    status : list of arrays
        What each kernel counts: uint32 words, or gateware's completion record.
    cleared : list of pyopencl.Event
        Of clearing the records: an event that nobody keeps is waited for.
    """

    session: Session
    events: list[Any] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    status: list[npt.NDArray[Any]] = field(default_factory=list)
    cleared: list[Any] = field(default_factory=list)


class Session:
    """A context with everything in it.

    Parameters
    ----------
    device : pyopencl.Device
    config : Config
    shape : Shape
        For a program from source.
    binary : Path or None
    memory_bytes, units : int
    """

    def __init__(
        self,
        device: Any,
        config: Config,
        shape: Shape,
        binary: Path | None,
        memory_bytes: int,
        units: int,
    ) -> None:
        self.config = config
        self.context = cl.Context([device])
        profiled = cl.command_queue_properties.PROFILING_ENABLE
        # Uploads do not wait behind downloads that wait for a kernel.
        self.upload, self.download = (cl.CommandQueue(self.context, properties=profiled) for _ in range(2))
        self.compute = [cl.CommandQueue(self.context, properties=profiled) for _ in range(units)]
        if binary is None:
            built, what = programs.compiled(self.context, device, config, shape), "the OpenCL C kernel"
        else:
            built, what = programs.loaded(self.context, device, binary), str(binary)
        self.program = programs.checked(built, self.upload, config, what)
        self.memory = cl.Buffer(self.context, cl.mem_flags.READ_WRITE, memory_bytes)
        self._scratch: list[_Scratch | None] = [None] * units
        self._kept: list[tuple[bytes, Any]] = [(b"", None)] * units
        self._empty = cl.Buffer(self.context, cl.mem_flags.READ_ONLY, 64)
        self._records = [cl.Buffer(self.context, cl.mem_flags.READ_WRITE, record.RECORD_BYTES) for _ in range(units)]

    def begin(self, launch: Launch, after: Sequence[Any] = ()) -> Running:
        """Start a launch once some events are complete; its units run at the same time."""
        running = Running(self)
        for number, unit in enumerate(launch.units):
            self._start(running, number, unit, list(after))
        return running

    def _start(self, running: Running, number: int, unit: Unit, after: list[Any]) -> None:
        values = {
            "descriptors": self._descriptors(number, unit.descriptors),
            "jobs": np.uint32(len(unit.descriptors)),
            "mac_events": self._list(unit.mac_events),
            "mac_event_count": np.uint32(len(unit.mac_events)),
            "feature_events": self._list(unit.feature_events),
            "feature_event_count": np.uint32(len(unit.feature_events)),
            "late_masks": self._list(unit.late_masks),
            "late_mask_count": np.uint32(len(unit.late_masks)),
            "memory": self.memory,
            "record": self._records[number],
        }
        arguments = [values[argument.name] for argument in ARGUMENTS]
        status: npt.NDArray[Any] = np.zeros(1, record.DTYPE)
        queue, said = self.compute[number], self._records[number]
        if self.program.is_gateware:
            running.cleared.append(gateware.clear(queue, said))
        else:
            scratch = self._unit(number, unit.descriptors)
            arguments[-1:] = [scratch.features, scratch.weights, scratch.results]
            arguments += [np.uint32(scratch.results.size), scratch.status]
            arguments += [] if scratch.banks is None else [scratch.banks]
            status, said = np.zeros(STATUS_WORDS, np.uint32), scratch.status
        group = (self.program.group,)
        running.events.append(self.program.kernel(queue, group, group, *arguments, wait_for=after))
        running.jobs.append(len(unit.descriptors))
        running.status.append(status)
        # Not on the queue of downloads, where reads wait for the launches after this one.
        running.last.append(cl.enqueue_copy(queue, status, said, is_blocking=False))
        queue.flush()

    def _descriptors(self, number: int, records: npt.NDArray[np.void]) -> Any:
        """A buffer with a compute unit's descriptors. The same launch is made over and over."""
        raw = records.tobytes()
        if self._kept[number][0] != raw:
            self._kept[number] = raw, self._list(records)
        return self._kept[number][1]

    def _list(self, records: npt.NDArray) -> Any:
        """A buffer with a list of records; buffers cannot be empty."""
        if not len(records):
            return self._empty
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        return cl.Buffer(self.context, flags, hostbuf=np.ascontiguousarray(records).view(np.uint8))

    def _unit(self, number: int, records: npt.NDArray[np.void]) -> _Scratch:
        """A compute unit's own memory, large enough for these jobs."""
        lanes, vec, operand = self.config.lanes, self.config.vec, self.program.operand_bytes
        wide = {name: records[name].astype(np.int64) for name in ("images", "out_h", "out_w", "pool_h", "pool_w")}
        outputs = wide["images"] * np.maximum(wide["out_h"] * wide["out_w"], wide["pool_h"] * wide["pool_w"])
        weights = max(1, int(records["steps"].max(initial=1))) * lanes * vec * operand
        results = 2 * max(1, int(outputs.max(initial=1))) * lanes
        old = self._scratch[number]
        if old is None or old.weights.size < weights or old.results.size < results:
            # Behind both buffers of features, a word of zeros.
            features = (2 * self.config.feature_words + 1) * vec * operand
            sizes = (
                features,
                max(weights, old.weights.size if old else 0),
                max(results, old.results.size if old else 0),
            )
            banks = bank_bytes(self.config)
            buffers = [
                cl.Buffer(self.context, cl.mem_flags.READ_WRITE, n) if n else None
                for n in (*sizes, 4 * (STATUS_CARRIED + lanes), banks)
            ]
            self._scratch[number] = old = _Scratch(*buffers)
        return old

    def wait(self, running: Running, timeout_s: float) -> LaunchReport:
        """Wait until all units of a launch are done.

        Raises
        ------
        DeviceError
            If that takes too long, or a kernel fails. The session is lost then.
        """
        units = len(running.last)
        done = completed(running.last, timeout_s)
        if done < units:
            raise DeviceError(
                f"the kernel hangs: of {units} compute units only {done} were done after "
                f"{timeout_s:g} s; the device was set up anew, memory must be written again (a longer "
                "launch_timeout_s= allows longer launches)"
            )
        for event in (*running.events, *running.last):
            if event.command_execution_status < 0:
                raise DeviceError(f"the kernel failed with OpenCL status {event.command_execution_status}")
        total = LaunchReport()
        for number, (status, jobs) in enumerate(zip(running.status, running.jobs, strict=True)):
            if self.program.is_gateware:
                gateware.check(status, self.config, jobs, f"compute unit {number}")
                total += gateware.report(status)
                continue
            if status[STATUS_JOBS] != jobs:
                raise DeviceError(f"compute unit {number} did {status[STATUS_JOBS]} of {jobs} jobs: the kernel failed")
            total += LaunchReport(faults_applied=int(status[STATUS_FAULTS]))
        return total
