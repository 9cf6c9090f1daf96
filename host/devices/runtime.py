"""Runs a Program on a device: cuts it at CPU layers, writes what changed, flips stored bits, reads results."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from host.devices.device import Device, DeviceError, Int8, LaunchReport
from host.devices.reference import flip, stored_input
from host.devices.turns import turn_of
from host.faults.plan import EVERY_IMAGE, FaultPlan
from host.faults.stream import PlanStream
from host.program.arrangement import gather
from host.program.integer import run_layer
from host.program.layers import INPUT
from host.program.program import Program, ProgramError
from host.schedule import memory
from host.schedule.launch import Launch, MemoryTooSmall, schedule

PART = 1 << 20
"""Values compared at a time."""
FIRST = 1 << 10
"""Of those that are compared first."""


@dataclass(frozen=True)
class Outputs:
    """What a forward pass produced, in integers at each layer's `out_frac`."""

    conv: dict[str, Int8]
    """By layer: after requantisation and ReLU, before pooling, shape (N, M, OH, OW).

    The same as `out` for layers without pooling."""
    out: dict[str, Int8]
    """By layer: final output, shape (N, M, PH, PW)."""
    report: LaunchReport
    """Summed over the launches of the pass."""


class Runtime:
    """A Program on a device.

    Parameters
    ----------
    program : Program
        Its weights may change between calls (`Program.requantise`); only changed ones are written.
    device : Device
        Of the same accelerator; several Runtimes, also in several threads, take turns on one device.
    units : int or None
        Compute units to use; by default all that the device has.

    Raises
    ------
    DeviceError
        If the device is of another build than the program was compiled for.
    """

    def __init__(self, program: Program, device: Device, *, units: int | None = None) -> None:
        _check_same_build(program, device)
        self.units = device.units if units is None else min(units, device.units)
        self.program = program
        self.device = device
        self._schedules: dict[tuple[tuple[int, ...], int, bool], Launch] = {}
        self._stored: dict[str, npt.NDArray] = {}
        self._largest: int | None = None
        self._token = object()
        self._turn = turn_of(device)
        self._segments = program.segments()

    def forward(
        self,
        x: Int8,
        *,
        writeback: bool = True,
        plan: FaultPlan | PlanStream | None = None,
        first_image: int = 0,
    ) -> Outputs:
        """One forward pass.

        Parameters
        ----------
        x : int8 array, shape (N, C, H, W)
            Quantised images, unfolded; see `Program.quantise_input`.
        writeback : bool
            Whether every layer's outputs are wanted; otherwise only the last layer's `out` is sure to be there.
        plan : FaultPlan, PlanStream or None
            Faults; image `first_image + i` of the plan is image `i` of `x`. Faults in layers on the CPU do not happen.
        first_image : int

        Raises
        ------
        ProgramError
            If the images are of another size or type.
        PlanError
            If the plan was drawn for another network.
        DeviceError
            If the device failed; the next call writes everything anew.
        """
        x = np.asarray(x)
        if x.dtype != np.int8:
            raise ProgramError(f"the forward pass takes int8 images (Program.quantise_input makes them), got {x.dtype}")
        self.program.check_input(x.shape)
        if not len(x):
            raise ProgramError("the forward pass needs at least one image")
        if plan is not None:
            plan.check(self.program)
            if plan.conditions is not None and not self.device.knows_conditions:
                raise DeviceError(
                    f"the {self.device.name} device has no model of late or stuck bits; "
                    "use reference, emulator, opencl or simulation"
                )
        parts, at = [], 0
        # What other threads write to the device now would be computed with, or read as this pass's results.
        with self._turn.lock:
            while at < len(x):
                size = min(len(x) - at, self._largest or len(x))
                try:
                    parts.append(self._pass(x[at : at + size], writeback, plan, first_image + at))
                except MemoryTooSmall:
                    if size == 1:
                        raise
                    self._largest = size // 2
                    continue
                at += size
        return parts[0] if len(parts) == 1 else joined(parts)

    def _pass(self, x: Int8, writeback: bool, plan: FaultPlan | PlanStream | None, first_image: int) -> Outputs:
        here = None if plan is None else plan.images(first_image, len(x))
        if here is not None and here.empty:
            here = None
        conv: dict[str, Int8] = {}
        out: dict[str, Int8] = {}
        report = LaunchReport()
        values: dict[str, Int8] = {INPUT: stored_input(self.program, self.program.fold_input(x), here, first_image)}
        for placement, positions in self._segments:
            if placement == "cpu":
                for at in positions:
                    layer = self.program.layers[at]
                    name = layer.name
                    integers = self.program.weights[name], self.program.biases[name]
                    conv[name], out[name] = run_layer(
                        gather(values, layer), *integers, layer, self.program.config.arithmetic
                    )
                    values[name] = out[name]
                continue
            launch = self._schedule(positions, len(x), writeback)
            if here is not None:
                launch = launch.with_faults(here, first_image, events_too=self.device.reads_events)
            report += self._launch(launch, values, here)
            wanted = self._wanted(launch, writeback)
            for at in positions:
                name = self.program.layers[at].name
                if memory.out_name(name) in wanted:
                    out[name] = values[name] = self._read(launch, memory.out_name(name), at)
                if memory.conv_name(name) in wanted:
                    conv[name] = self._read(launch, memory.conv_name(name), at)
                elif name in out and not memory.conv_is_separate(self.program.layers[at]):
                    conv[name] = out[name]
        return Outputs(conv, out, report)

    def _wanted(self, launch: Launch, writeback: bool) -> set[str]:
        """Regions of a launch to read: all it writes, or only the network's output and what other launches read."""
        if writeback:
            return set(launch.written)
        wanted = set()
        for at in launch.positions:
            name = self.program.layers[at].name
            readers = self.program.readers(name)
            if not readers or any(self.program.index(reader) not in launch.positions for reader in readers):
                wanted |= {memory.out_name(name), memory.conv_name(name)} & set(launch.written)
        return wanted

    def _schedule(self, positions: tuple[int, ...], batch: int, writeback: bool) -> Launch:
        key = (positions, batch, writeback)
        if key not in self._schedules:
            self._schedules[key] = schedule(
                self.program,
                positions,
                batch,
                writeback=writeback,
                units=self.units,
                memory_bytes=self.device.memory_bytes,
            )
        return self._schedules[key]

    def _launch(self, launch: Launch, values: dict[str, Int8], faults: FaultPlan | None) -> LaunchReport:
        """Write weights and input, launch, and put fault-free weights back."""
        self.claim()
        try:
            hit = self._write_weights(launch, faults)
            for source in launch.inputs:
                self.device.write_features(launch.memory[memory.input_name(source)], values[source])
            report = self._execute(launch)
            for at in hit:
                self._write_layer(launch, at, self.program.weights[self.program.layers[at].name])
        except BaseException:
            # The device's memory is unknown now, also after Ctrl-C between two writes.
            self._stored.clear()
            raise
        return report

    def claim(self) -> None:
        """Take the device: what another Runtime has used since must be written again."""
        if self._turn.user is not self._token:
            self._stored.clear()
        self._turn.user = self._token

    def _execute(self, launch: Launch) -> LaunchReport:
        """The launch itself, when all it reads is in device memory."""
        return self.device.launch(launch)

    def _write_weights(self, launch: Launch, faults: FaultPlan | None) -> list[int]:
        """Bring memory up to date; the layers whose weights now hold flips."""
        hit = []
        # Sorted to the front; looking through all flips for each layer would cost more than the layer.
        stored = None if faults is None else faults.images(0, 0)
        for at in launch.positions:
            name = self.program.layers[at].name
            weight = self.program.weights[name]
            flips = None if stored is None else stored.at(at, "weight")
            if flips is not None and len(flips):
                weight = flip(weight[None], flips.counted_from(EVERY_IMAGE))[0]
                hit.append(at)
            self._write_layer(launch, at, weight)
        return hit

    def _write_layer(self, launch: Launch, at: int, weight: Int8) -> None:
        layer = self.program.layers[at]
        region = memory.weights_name(layer.name)
        if self._changed(region, weight):
            # The device may keep what it is given: nothing that somebody may still change.
            kept = weight if _is_frozen(weight) else weight.copy()
            self.device.write_weights(launch.memory[region], kept, layer)
            self._stored[region] = kept
        region, bias = memory.params_name(layer.name), self.program.biases[layer.name]
        if self._changed(region, bias):
            kept_bias = bias if _is_frozen(bias) else bias.copy()
            self.device.write_params(launch.memory[region], kept_bias, layer)
            self._stored[region] = kept_bias

    def _changed(self, region: str, content: npt.NDArray) -> bool:
        """Whether a region holds something else; if so, it counts as unknown until it has been written."""
        stored = self._stored.get(region)
        if stored is content or (stored is not None and _same(stored, content)):
            return False
        self._stored.pop(region, None)
        return True

    def _read(self, launch: Launch, name: str, at: int) -> Int8:
        return self.device.read_features(launch.memory[name], self.program.layers[at].out_channels)


def _is_frozen(array: npt.NDArray) -> bool:
    """Whether nobody can change an array's values."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None


def _same(a: npt.NDArray, b: npt.NDArray) -> bool:
    """Whether two arrays of one shape hold the same; a part at a time, since those that differ mostly do so early."""
    flat, other = a.reshape(-1), b.reshape(-1)
    if flat[:FIRST].tobytes() != other[:FIRST].tobytes():
        return False
    return all(flat[at : at + PART].tobytes() == other[at : at + PART].tobytes() for at in range(0, len(flat), PART))


def joined(parts: list[Outputs]) -> Outputs:
    """What parts of a batch produced, as one."""

    def concatenated(kind: str) -> dict[str, Int8]:
        # Each part may have left other intermediate tensors behind; only those of all parts make a whole.
        names = set.intersection(*(set(getattr(part, kind)) for part in parts))
        return {
            name: np.concatenate([getattr(part, kind)[name] for part in parts])
            for name in getattr(parts[0], kind)
            if name in names
        }

    return Outputs(concatenated("conv"), concatenated("out"), sum((part.report for part in parts), LaunchReport()))


def _check_same_build(program: Program, device: Device) -> None:
    different = [
        f"{field.name} {getattr(program.config, field.name)} against {getattr(device.config, field.name)}"
        for field in fields(program.config)
        if field.name != "probe" and getattr(program.config, field.name) != getattr(device.config, field.name)
    ]
    if different:
        raise DeviceError(
            f"the program was compiled for another accelerator than the {device.name} device ({', '.join(different)}): "
            "compile with config=device.config"
        )
