"""Transfers that overlap computing: while one batch computes, the next is written and the one before is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from host.devices.device import Bytes, DeviceError, Int8
from host.devices.reference import stored_input
from host.devices.runtime import Outputs, Runtime, joined
from host.faults.plan import FaultPlan
from host.faults.stream import PlanStream
from host.program.layers import INPUT
from host.program.program import Program, ProgramError
from host.schedule import memory
from host.schedule.launch import Launch, MemoryTooSmall
from hw.descriptor import Flag

if TYPE_CHECKING:
    from host.devices.opencl.device import OpenCLDevice
    from host.devices.opencl.session import Running

AT_ONCE = 2
"""Batches in device memory: each has regions of its own."""
FIXED = ("weights/", "params/")
"""Regions that all batches share."""


class Span(NamedTuple):
    """What the OpenCL device's clock says of one command."""

    batch: int
    kind: str
    """"write", "compute" or "read"."""
    unit: int
    """Compute unit; 0 for transfers."""
    start_ns: int
    end_ns: int


@dataclass
class _Batch:
    """A batch in flight."""

    number: int
    launch: Launch
    writes: tuple[Any, ...]
    running: Running
    reads: dict[str, tuple[Bytes, list[Any]]]


class Overlapped(Runtime):
    """A Runtime for an OpenCL device that hides transfers behind computing; the results are those of a Runtime.

    Batches take turns in two sets of regions. A forward pass overlaps the parts of its own batch if there is more than
    one, the program runs on the device as a whole, and memory holds two parts; otherwise it is a Runtime's.

    Parameters
    ----------
    program : Program
    device : OpenCLDevice
    parts : int
        Parts into which `forward` cuts its batch.

    Attributes
    ----------
    spans : list of Span
        Every transfer and kernel of the last `stream`, by the OpenCL device's clock.
    """

    device: OpenCLDevice

    def __init__(self, program: Program, device: OpenCLDevice, *, parts: int = 1, units: int | None = None) -> None:
        super().__init__(program, device, units=units)
        if parts < 1:
            raise ValueError(f"parts must be at least 1, not {parts}")
        self.parts = parts
        self.spans: list[Span] = []
        self._second = 0

    def forward(
        self, x: Int8, *, writeback: bool = True, plan: FaultPlan | PlanStream | None = None, first_image: int = 0
    ) -> Outputs:
        parts = min(self.parts, len(x))
        if parts > 1 and len(self.program.segments()) == 1 and self.program.segments()[0][0] == "accelerator":
            # The first part is the largest.
            with suppress(MemoryTooSmall):
                split = np.array_split(np.asarray(x), parts)
                return joined(list(self.stream(split, writeback=writeback, plan=plan, first_image=first_image)))
        return super().forward(x, writeback=writeback, plan=plan, first_image=first_image)

    def stream(
        self,
        batches: Iterable[Int8],
        *,
        writeback: bool = True,
        plan: FaultPlan | PlanStream | None = None,
        first_image: int = 0,
    ) -> Iterator[Outputs]:
        """Forward passes of one batch after the other, in order.

        Parameters
        ----------
        batches : iterable of int8 arrays, each of shape (N, C, H, W)
            Taken one ahead of the results.
        writeback, plan, first_image
            As for `forward`; images are numbered through all batches.

        Raises
        ------
        ProgramError
            If the program has layers on the CPU, or the images do not fit it.
        MemoryTooSmall
            If device memory does not hold two batches.
        DeviceError
            If the device failed.
        """
        segments = self.program.segments()
        if len(segments) != 1 or segments[0][0] != "accelerator":
            raise ProgramError("batches overlap only if every layer runs on the device: use Runtime for this program")
        if plan is not None:
            plan.check(self.program)
        self.spans, self._second = [], 0
        flying: deque[_Batch] = deque()
        hit: list[int] = []
        launch: Launch | None = None
        # Held between two batches, too: other threads wait for the whole stream.
        with self._turn.lock:
            try:
                self.claim()
                for number, x in enumerate(batches):
                    here = None if plan is None else plan.images(first_image, len(x))
                    launch = self._planned(segments[0][1], np.asarray(x), writeback, here, first_image)
                    # The host works, too, before it waits for what computes.
                    features = self._features(np.asarray(x), here, first_image)
                    while len(flying) >= AT_ONCE or (flying and launch.end > self._second):
                        yield self._finished(flying)
                        self._check_turn()
                    if number == 0:
                        # Faults in weights last for the whole run.
                        hit = self._write_weights(launch, here)
                    flying.append(self._begun(number, launch, features, writeback))
                    first_image += len(x)
                while flying:
                    yield self._finished(flying)
                    self._check_turn()
                for at in hit:
                    assert launch is not None
                    self._write_layer(launch, at, self.program.weights[self.program.layers[at].name])
            except BaseException:
                self._stored.clear()
                for batch in flying:
                    # What is wrong has been said; what still runs must not write into what comes next.
                    with suppress(DeviceError):
                        self.device.finish(batch.running)
                raise

    def _check_turn(self) -> None:
        if self._turn.user is not self._token:
            raise DeviceError(
                "another program used the device between two batches of a stream: take all results of the stream first"
            )

    def _planned(
        self, positions: tuple[int, ...], x: Int8, writeback: bool, here: FaultPlan | None, first_image: int
    ) -> Launch:
        if x.dtype != np.int8 or not len(x):
            raise ProgramError(
                f"a batch is of int8 images (Program.quantise_input makes them), got {x.dtype} {x.shape}"
            )
        self.program.check_input(x.shape)
        launch = self._schedule(positions, len(x), writeback)
        return launch if here is None or here.empty else launch.with_faults(here, first_image)

    def _features(self, x: Int8, here: FaultPlan | None, first_image: int) -> Int8:
        """A batch as it lies in memory, with the flips in its bits."""
        return self.device.reorder(stored_input(self.program, self.program.fold_input(x), here, first_image))

    def _begun(self, number: int, launch: Launch, features: Int8, writeback: bool) -> _Batch:
        if not self._second or launch.end > self._second:
            self._second = launch.end
        if number % AT_ONCE:
            launch = moved(launch, self._second)
        if launch.end > self.device.memory_bytes:
            raise MemoryTooSmall(
                f"two batches need {launch.end} bytes of device memory, the device has {self.device.memory_bytes}: use "
                f"smaller batches or a device with memory_bytes={launch.end} or more"
            )
        writes = self.device.begin_write(launch.memory[memory.input_name(INPUT)].address, features)
        running = self.device.begin(launch, after=writes)
        reads: dict[str, tuple[Bytes, list[Any]]] = {}
        for name in sorted(self._wanted(launch, writeback)):
            array, *events = self.device.begin_read(
                launch.memory[name].address, launch.memory[name].nbytes, after=running.events
            )
            reads[name] = array, events
        return _Batch(number, launch, writes, running, reads)

    def _finished(self, flying: deque[_Batch]) -> Outputs:
        batch = flying[0]
        report = self.device.finish(batch.running)
        for _, events in batch.reads.values():
            self.device.finish_transfer(*events)
        flying.popleft()
        self._note(batch)
        conv: dict[str, Int8] = {}
        out: dict[str, Int8] = {}
        for at in batch.launch.positions:
            layer = self.program.layers[at]
            for name, found in ((memory.out_name(layer.name), out), (memory.conv_name(layer.name), conv)):
                if name in batch.reads:
                    shape = batch.launch.memory[name].shape
                    raw = batch.reads[name][0].view(np.int8).reshape(shape)
                    found[layer.name] = self.device.recover(raw, layer.out_channels)
            if layer.name in out and not memory.conv_is_separate(layer):
                conv[layer.name] = out[layer.name]
        return Outputs(conv, out, report)

    def _note(self, batch: _Batch) -> None:
        commands = [("write", 0, event) for event in batch.writes]
        commands += [("compute", unit, event) for unit, event in enumerate(batch.running.events)]
        commands += [("read", 0, event) for _, events in batch.reads.values() for event in events]
        self.spans += [
            Span(batch.number, kind, unit, event.profile.start, event.profile.end) for kind, unit, event in commands
        ]


def moved(launch: Launch, by: int) -> Launch:
    """The same launch with its tensors elsewhere; weights and parameters stay where they are.

    Parameters
    ----------
    by : int
        Bytes, a multiple of every alignment.
    """
    regions = {
        name: region if name.startswith(FIXED) else region._replace(address=region.address + by)
        for name, region in launch.memory.items()
    }
    units = []
    for unit in launch.units:
        records = unit.descriptors.copy()
        for name, flag in (("load_addr", Flag.LOAD), ("conv_addr", Flag.WRITE_CONV), ("pool_addr", Flag.WRITE_POOL)):
            records[name] += np.where(records["flags"] & flag, np.uint64(by), np.uint64(0))
        units.append(replace(unit, descriptors=records, descriptors_address=unit.descriptors_address + by))
    return replace(launch, memory=regions, units=units, end=launch.end + by)
