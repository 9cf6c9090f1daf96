"""One context of an OpenCL device: its queues, its memory, its kernel. What a hung kernel takes with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from host.devices.device import DeviceError, LaunchReport
from host.devices.opencl import program as programs
from host.devices.opencl.source import STATUS_CARRIED, STATUS_FAULTS, STATUS_JOBS, STATUS_WORDS, Shape
from hw.config import Config

if TYPE_CHECKING:
    from host.schedule.launch import Launch, Unit

ADDRESSES = ("load_addr", "weight_addr", "param_addr", "conv_addr", "pool_addr")
"""Fields of a descriptor that name a place in memory."""


@dataclass
class _Scratch:
    """What stands for a compute unit's own memory: on-chip features, a group's weights, a group's results; counters."""

    features: Any
    weights: Any
    results: Any
    status: Any


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
    status : list of uint32 arrays
        What each kernel counts; empty for gateware, which has registers for that.
    """

    session: Session
    events: list[Any] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    status: list[npt.NDArray[np.uint32]] = field(default_factory=list)


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
    base_address : int or None
        Where memory lies, for gateware.
    """

    def __init__(
        self,
        device: Any,
        config: Config,
        shape: Shape,
        binary: Path | None,
        memory_bytes: int,
        units: int,
        base_address: int | None,
    ) -> None:
        self.device, self.config = device, config
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
        self.base_address = base_address
        self._scratch: list[_Scratch | None] = [None] * units
        self._kept: list[tuple[bytes, Any]] = [(b"", None)] * units
        self._empty = cl.Buffer(self.context, cl.mem_flags.READ_ONLY, 64)

    def begin(self, launch: Launch, after: Sequence[Any] = ()) -> Running:
        """Start a launch once some events are complete; its units run at the same time."""
        running = Running(self)
        for number, unit in enumerate(launch.units):
            self._start(running, number, unit, list(after))
        return running

    def _start(self, running: Running, number: int, unit: Unit, after: list[Any]) -> None:
        arguments = [
            self._descriptors(number, unit.descriptors),
            np.uint32(len(unit.descriptors)),
            self._list(unit.mac_events),
            np.uint32(len(unit.mac_events)),
            self._list(unit.feature_events),
            np.uint32(len(unit.feature_events)),
            self._list(unit.late_masks),
            np.uint32(len(unit.late_masks)),
        ]
        if not self.program.is_gateware:
            scratch = self._unit(number, unit.descriptors)
            arguments += [self.memory, scratch.features, scratch.weights, scratch.results]
            arguments += [np.uint32(scratch.results.size), scratch.status]
        group, queue = (self.program.group,), self.compute[number]
        running.events.append(self.program.kernel(queue, group, group, *arguments, wait_for=after))
        running.last.append(running.events[-1])
        running.jobs.append(len(unit.descriptors))
        if not self.program.is_gateware:
            # Not on the queue of downloads, where reads wait for the launches after this one.
            running.status.append(np.zeros(STATUS_WORDS, np.uint32))
            running.last[-1] = cl.enqueue_copy(queue, running.status[-1], arguments[-1], is_blocking=False)
        queue.flush()

    def _descriptors(self, number: int, records: npt.NDArray[np.void]) -> Any:
        """A buffer with a compute unit's descriptors. The same launch is made over and over."""
        raw = records.tobytes()
        if self._kept[number][0] != raw or self.program.is_gateware:
            self._kept[number] = raw, self._list(self._placed(records))
        return self._kept[number][1]

    def _placed(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Descriptors with addresses as the kernel wants them: gateware sees all of the board's memory."""
        if not self.program.is_gateware:
            return records
        if self.base_address is None:
            self.base_address = programs.physical_address(self.memory, self.device)
        moved = records.copy()
        for name in ADDRESSES:
            moved[name] += np.uint64(self.base_address)
        return moved

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
            buffers = [
                cl.Buffer(self.context, cl.mem_flags.READ_WRITE, n) for n in (*sizes, 4 * (STATUS_CARRIED + lanes))
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
        end = time.monotonic() + timeout_s
        done = threading.Semaphore(0)
        for event in running.last:
            event.set_callback(cl.command_execution_status.COMPLETE, lambda _: done.release())
        for number in range(len(running.last)):
            if not done.acquire(timeout=max(0.0, end - time.monotonic())):
                raise DeviceError(
                    f"the kernel hangs: of {len(running.last)} compute units only {number} were done after "
                    f"{timeout_s:g} s; the device was set up anew, memory must be written again (a longer "
                    "launch_timeout_s= allows longer launches)"
                )
        for event in (*running.events, *running.last):
            if event.command_execution_status < 0:
                raise DeviceError(f"the kernel failed with OpenCL status {event.command_execution_status}")
        for number, (status, jobs) in enumerate(zip(running.status, running.jobs, strict=False)):
            if status[STATUS_JOBS] != jobs:
                raise DeviceError(f"compute unit {number} did {status[STATUS_JOBS]} of {jobs} jobs: the kernel failed")
        return LaunchReport(faults_applied=sum(int(status[STATUS_FAULTS]) for status in running.status))
