"""Verification: random cases on several devices, byte by byte, and the first divergence where they differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from host.devices import registry as factory
from host.devices.device import Bytes, Device, DeviceError, Int8, LaunchReport
from host.devices.runtime import Runtime
from host.faults.models import Fault
from host.program.arrangement import gather, unpack_weights
from host.program.program import Program
from host.schedule import memory
from host.schedule.launch import Launch, Unit
from host.verification.cases import CONFIGS, Case, kind_of, random_case
from host.verification.divergence import Divergence, in_trace
from host.verification.expect import Expected, expected_job, extents
from host.verification.overclocked import OVERCLOCKED, overclocked_case
from hw import layout, params
from hw.config import Config, ConfigError
from hw.delays import Table
from hw.descriptor import Flag

MEMORY_BYTES = 1 << 24
BOARD_BYTES = 1 << 20
"""Of a simulated board: enough for every case."""
UNITS = 2
OVERCLOCK_COUNTS = ("late_cases", "wrong_cases", "clock_changes")
POISON = 0xA5
"""What regions hold before a launch writes them: a byte that is not written does not look right by chance."""

Make = Callable[[str, Config, int], Device]


def make_device(name: str, config: Config, units: int, **options: Any) -> Device:
    """A device as verification uses it: small memory, a few compute units; options of its own go before."""
    units_of = {"reference": "units", "simulation": "processes", "opencl": "units", "emulator": "units"}
    usual: dict[str, Any] = {"memory_bytes": MEMORY_BYTES}
    if name in units_of:
        usual[units_of[name]] = units
    if name == "serial":
        # A board has the memory that it was built with; without a port it is a simulated one.
        usual = {} if "port" in options else {"simulated": True, "memory_bytes": BOARD_BYTES}
    return factory.device(name, config, **{**usual, **options})


@dataclass(frozen=True)
class Mismatch:
    """One case on which a device differs from the first."""

    case: Case
    divergence: Divergence

    def __str__(self) -> str:
        return f"{self.case}\n{self.divergence}"


@dataclass
class Report:
    """What verification found."""

    devices: tuple[str, ...]
    seed: int
    cases: int = 0
    """Cases run."""
    faults: int = 0
    """Fault events in all cases."""
    faulty_cases: int = 0
    overclocked: bool = False
    late_cases: int = 0
    """Cases with conditions under which some bit is late or stuck."""
    wrong_cases: int = 0
    """Those of them whose bytes are other than without the conditions."""
    clock_changes: int = 0
    """Launches that follow one under other conditions on the same device, within a case."""
    left_out: int = 0
    """Cases that were not run on some device, whose memory they do not fit."""
    mismatches: list[Mismatch] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all devices gave the same bytes on all cases."""
        return not self.mismatches

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "devices": list(self.devices),
            "seed": self.seed,
            "cases": self.cases,
            "faulty_cases": self.faulty_cases,
            "faults": self.faults,
            **({name: getattr(self, name) for name in OVERCLOCK_COUNTS} if self.overclocked else {}),
            "left_out": self.left_out,
            "mismatches": len(self.mismatches),
            "seconds": round(self.seconds, 1),
            "divergences": [
                {"case": m.case.number, "what": str(m.case), **m.divergence.as_dict()} for m in self.mismatches
            ],
        }

    def __str__(self) -> str:
        overclocked = ""
        if self.overclocked:
            overclocked = (
                f"; {self.late_cases} with late or stuck bits, {self.wrong_cases} of them with wrong bytes, "
                f"{self.clock_changes} changes of clock or stuck bits between passes"
            )
        head = (
            f"{self.cases} cases on {', '.join(self.devices)} (seed {self.seed}, {self.faulty_cases} with faults, "
            f"{self.faults} fault events{overclocked}): {len(self.mismatches)} mismatches, {self.seconds:.0f} s"
        )
        if self.left_out:
            head += f"; {self.left_out} cases do not fit the memory of some device, and were not run there"
        return "\n\n".join([head, *(str(mismatch) for mismatch in self.mismatches)])


def verify(
    devices: Sequence[str] = ("reference", "simulation"),
    cases: int = 200,
    seed: int = 0,
    *,
    faults: Fault | None = None,
    first_case: int = 0,
    most_mismatches: int = 3,
    make: Make = make_device,
    configs: tuple[Config, ...] | None = None,
    overclock: bool = False,
    tables: Sequence[Table] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run random cases on devices and compare every byte that they leave in memory.

    Parameters
    ----------
    devices : names
        The first is what the others are compared to; a probe trace is read from devices that have one (`trace`).
    cases, seed : int
        How many cases, and which.
    faults : Fault or None
        Fault model of every case; by default random soft errors in two of three cases.
    first_case : int
        Number of the first case: to repeat a single one.
    most_mismatches : int
        Stop after this many; each is diagnosed, on the RTL with a build of its own.
    make : callable (name, config, units) -> Device
    configs : tuple of Config
        Accelerators to choose from; each costs the simulator a build.
    overclock : bool
        Cases of `host.verification.overclocked`: late and stuck bits, beside soft errors.
    tables : sequence of Table
        With `overclock`: delay tables to use beside random ones.
    progress : callable (done, cases), optional

    Raises
    ------
    DeviceError
        If a device cannot be made, or the first has less memory than another. A device that fails in a launch is a
        mismatch.
    """
    if len(devices) < 2:
        raise ValueError("verification compares at least two devices")
    started = time.monotonic()
    report = Report(tuple(devices), seed, overclocked=overclock)
    if configs is None:
        configs = OVERCLOCKED if overclock else CONFIGS
    # By accelerator, so that few simulators run at a time.
    numbers = range(first_case, first_case + cases)
    if overclock:
        made = [overclocked_case(seed, number, configs, tables) for number in numbers]
    else:
        made = [random_case(seed, number, faults, configs) for number in numbers]
    done = 0
    for config in configs:
        mine = [case for case in made if case.program.config == config]
        if not mine:
            continue
        with ExitStack() as stack:
            opened = {name: stack.enter_context(make(name, config, UNITS)) for name in devices}
            _check_memory(opened)
            for case in mine:
                report.cases += 1
                if case.plan is not None:
                    report.faulty_cases += bool(len(case.plan))
                    report.faults += len(case.plan)
                if overclock:
                    _count_conditions(report, case, opened[devices[0]])
                for mismatch in _compare(case, opened, make, report):
                    report.mismatches.append(mismatch)
                    if len(report.mismatches) >= most_mismatches:
                        report.seconds = time.monotonic() - started
                        return report
                done += 1
                if progress is not None:
                    progress(done, cases)
    report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True)
class Snapshot:
    """Device memory right after a launch, by region."""

    launch: Launch
    regions: dict[str, Bytes]
    report: LaunchReport


class Witness(Runtime):
    """A Runtime that poisons what a launch should write, and keeps what it left behind."""

    def __init__(self, case: Case, device: Device) -> None:
        super().__init__(case.program, device, units=case.units)
        self.snapshots: list[Snapshot] = []

    def _execute(self, launch: Launch) -> LaunchReport:
        for name in launch.written:
            region = launch.memory[name]
            self.device.write(region.address, np.full(region.nbytes, POISON, np.uint8))
        report = super()._execute(launch)
        used = {*(memory.input_name(source) for source in launch.inputs), *launch.written}
        for name in launch.layers:
            used |= {memory.weights_name(name), memory.params_name(name)}
        regions = {
            name: self.device.read(region.address, region.nbytes)
            for name, region in launch.memory.items()
            if name in used
        }
        self.snapshots.append(Snapshot(launch, regions, report))
        return report


def run_case(case: Case, device: Device) -> list[Snapshot]:
    """A case on a device: what every launch left in memory."""
    witness = Witness(case, device)
    for plan in (case.plan, *case.others):
        witness.forward(case.x, writeback=case.writeback, plan=plan, first_image=case.first_image)
    return witness.snapshots


def _count_conditions(report: Report, case: Case, oracle: Device) -> None:
    """Count what a case's conditions do, on the oracle."""
    config = case.program.config
    every = [None if plan is None else plan.conditions for plan in (case.plan, *case.others)]
    report.clock_changes += sum(a != b for a, b in zip(every, every[1:], strict=False))
    if not any(conditions is not None and conditions.banks(config) for conditions in every):
        return
    report.late_cases += 1
    plain = [None if plan is None else plan.under(None) for plan in (case.plan, *case.others)]
    without = run_case(replace(case, plan=plain[0], others=tuple(plain[1:])), oracle)
    report.wrong_cases += _first_byte("", without, run_case(case, oracle)) is not None


def _check_memory(opened: dict[str, Device]) -> None:
    """Launches are those that fit the first device's memory."""
    first, *others = opened
    for name in others:
        if opened[name].memory_bytes > opened[first].memory_bytes:
            raise DeviceError(
                f"the {first} device has less memory ({opened[first].memory_bytes} bytes) than the {name} device "
                f"({opened[name].memory_bytes}): name the one with most memory first"
            )


def _compare(case: Case, opened: dict[str, Device], make: Make, report: Report) -> Iterator[Mismatch]:
    first, *others = opened
    expected = run_case(case, opened[first])
    needed = max((snapshot.launch.end for snapshot in expected), default=0)
    fitting = [name for name in others if needed <= opened[name].memory_bytes]
    report.left_out += len(fitting) < len(others)
    for name in fitting:
        found = _difference(case, name, opened[name], expected)
        if found is not None:
            named = _diagnose(case, name, found, opened[first], opened[name], make)
            if named.layer is not None:
                named = replace(named, operator=kind_of(case.program.layer(named.layer)))
            yield Mismatch(case, named)


def _difference(case: Case, name: str, device: Device, expected: list[Snapshot]) -> Divergence | None:
    try:
        return _first_byte(name, expected, run_case(case, device))
    except DeviceError as error:
        return Divergence(name, None, "launch", note=str(error))


def _first_byte(device: str, expected: list[Snapshot], found: list[Snapshot]) -> Divergence | None:
    """The first byte that differs, in the order of launches, layers and regions."""
    for wanted, seen in zip(expected, found, strict=True):
        launch = wanted.launch
        for at in launch.positions:
            layer = launch.program.layers[at]
            for stage, name, shape in (
                ("write conv", memory.conv_name(layer.name), layer.conv_shape),
                ("write pool", memory.out_name(layer.name), layer.out_shape),
            ):
                if name in wanted.regions and (wanted.regions[name] != seen.regions[name]).any():
                    return _at_byte(device, layer.name, stage, launch, name, wanted, seen, shape[0])
        for name in wanted.regions:
            if (wanted.regions[name] != seen.regions[name]).any():
                offset = int(np.argmax(wanted.regions[name] != seen.regions[name]))
                return Divergence(device, None, "memory", note=f"region {name} was changed, at its byte {offset}")
        counted, right = seen.report.faults_applied, wanted.report.faults_applied
        if counted != right and counted and right:
            return Divergence(
                device, None, "faults", expected=right, found=counted, note="number of fault events applied"
            )
    return None


def _at_byte(
    device: str, layer: str, stage: str, launch: Launch, name: str, wanted: Snapshot, seen: Snapshot, channels: int
) -> Divergence:
    region = launch.memory[name]
    right, wrong = (s.regions[name].view(np.int8).reshape(region.shape) for s in (wanted, seen))
    image, group, y, x, v = (int(i) for i in np.unravel_index(int(np.argmax(right != wrong)), region.shape))
    channel = group * region.shape[-1] + v
    note = "" if channel < channels else "a padding channel"
    expected, found = int(right[image, group, y, x, v]), int(wrong[image, group, y, x, v])
    if (wrong[image, group, y, x] == np.array(POISON, np.uint8).view(np.int8)).all():
        note = "never written"
    return Divergence(device, layer, stage, image, channel, y, x, None, expected, found, {}, None, note)


def _diagnose(case: Case, name: str, first: Divergence, oracle: Device, device: Device, make: Make) -> Divergence:
    """Shrink a failing case and find its first divergence from the probes of a rerun."""
    small = _shrink(case, name, oracle, device)
    again = _difference(small, name, device, run_case(small, oracle))
    if again is None:
        note = f"{first.note} (did not happen again when repeated: it depends on what ran before)".strip()
        return replace(first, note=note)
    if not hasattr(device, "trace"):
        return again
    try:
        with make(name, replace(small.program.config, probe=True), 1) as probed:
            traced = _traced(small, name, again, oracle, probed)
    except (DeviceError, ConfigError) as error:
        return replace(again, note=f"{again.note} no probe trace: {error}".strip())
    return traced


def _shrink(case: Case, name: str, oracle: Device, device: Device) -> Case:
    """The smallest variation found that still fails: one unit, all written back, one image, no faults."""

    def fails(tried: Case) -> bool:
        return _difference(tried, name, device, run_case(tried, oracle)) is not None

    small = case
    for plan in (case.plan, *case.others):
        alone = replace(case, plan=plan, others=())
        if case.others and fails(alone):
            small = alone
            break
    for change in ({"units": 1}, {"writeback": True}, {"plan": None}):
        tried = replace(small, **change)
        if fails(tried):
            small = tried
    if len(small.x) > 1:
        for image in range(len(small.x)):
            tried = replace(small, x=small.x[image : image + 1], first_image=small.first_image + image)
            if fails(tried):
                return tried
    return small


def _traced(case: Case, name: str, byte: Divergence, oracle: Device, probed: Device) -> Divergence:
    """The first divergence of the launch in question, from its probes."""
    if case.units != 1:
        # The probes show one unit; the whole batch on one unit may not fail, but then says so.
        case = replace(case, units=1)
    # With everything written back on the oracle, each layer's input is known.
    everything = run_case(replace(case, writeback=True), oracle)
    expected = run_case(case, oracle)
    witness = _TracingWitness(case, probed)
    failure = ""
    try:
        for plan in (case.plan, *case.others):
            witness.forward(case.x, writeback=case.writeback, plan=plan, first_image=case.first_image)
    except DeviceError as error:
        failure = str(error)
    for number, (wanted, full) in enumerate(zip(expected, everything, strict=True)):
        if number >= len(witness.traces):
            break
        jobs = expected_jobs(wanted, full)
        trace = witness.traces[number]
        found = in_trace(name, trace, jobs, case.program.config)
        written = None
        if number < len(witness.snapshots):
            written = _first_byte(name, [wanted], [witness.snapshots[number]])
        if found is not None and written is not None and _follows(found, written, case.program):
            found = None
        if found is not None:
            return replace(found, note=" ".join(part for part in (found.note, failure) if part))
        if written is not None:
            return _with_cycle(written, jobs, trace, case.program.config)
    return replace(byte, note=f"{byte.note} {failure or 'the probed build does not show it'}".strip())


def _follows(found: Divergence, written: Divergence, program: Program) -> bool:
    """Whether wrong operands are only what an earlier layer wrote wrongly: tensors of a graph go through memory."""
    if found.layer is None or written.layer is None:
        return False
    return found.stage == "read features" and program.index(written.layer) < program.index(found.layer)


class _TracingWitness(Witness):
    """Also keeps the probe trace of every launch."""

    def __init__(self, case: Case, device: Device) -> None:
        super().__init__(case, device)
        self.traces: list[Any] = []

    def _execute(self, launch: Launch) -> LaunchReport:
        try:
            return super()._execute(launch)
        finally:
            # If the simulator died, the launch's own error says why.
            with suppress(DeviceError):
                self.traces.append(self.device.trace())  # type: ignore[attr-defined]


def expected_jobs(snapshot: Snapshot, everything: Snapshot) -> list[Expected]:
    """The probe records of a launch's first unit, of the jobs that compute.

    Parameters
    ----------
    snapshot : Snapshot
        Of the launch, on the oracle.
    everything : Snapshot
        Of the same launch with every layer written back, for the layers' inputs.
    """
    launch = snapshot.launch
    config = launch.program.config
    inputs: dict[int, Int8] = {}
    for at in launch.positions:
        layer = launch.program.layers[at]
        tensors = {}
        for source, channels in zip(layer.sources, layer.source_channels, strict=True):
            name = memory.input_name(source) if source in launch.inputs else memory.out_name(source)
            region = everything.launch.memory[name]
            tensor = everything.regions[name].view(np.int8).reshape(region.shape)
            tensors[source] = layout.recover_features(tensor, channels)
        inputs[at] = gather(tensors, layer)
    conditions = None if launch.plan is None else launch.plan.conditions
    banks = {} if conditions is None else conditions.banks(config)
    jobs: list[Expected] = []
    unit = launch.units[0]
    loaded = False
    for number, (job, flags) in enumerate(zip(unit.jobs, unit.descriptors["flags"], strict=True)):
        # Jobs of one tile's further output groups read what the first read; a job with one output may read again what
        # an earlier one read.
        further = bool(jobs) and jobs[-1].job[:4] == job[:4] and job.first_group > 0
        further = further or job.output is not None
        loaded = bool(flags & Flag.LOAD) or (loaded and (further or _only_loads(unit, number - 1)))
        if _only_loads(unit, number):
            continue
        layer = launch.program.layers[job.layer]
        region = launch.memory[memory.weights_name(layer.name)]
        stored = snapshot.regions[memory.weights_name(layer.name)].view(np.int8).reshape(region.shape)
        weight = unpack_weights(stored, layer, config)
        records = snapshot.regions[memory.params_name(layer.name)].view(params.DTYPE)[: layer.out_channels]
        jobs.append(
            expected_job(
                unit,
                number,
                layer,
                inputs[job.layer],
                weight,
                records["bias"].copy(),
                records["shift"].copy(),
                config,
                loaded,
                banks,
                jobs[-1] if jobs else None,
            )
        )
    return jobs


def _only_loads(unit: Unit, number: int) -> bool:
    """Whether a job of a unit computes nothing."""
    return number >= 0 and bool(unit.descriptors["flags"][number] & Flag.LOAD_ONLY)


def _with_cycle(written: Divergence, jobs: list[Expected], trace: Any, config: Config) -> Divergence:
    """A wrong write, with the cycle in which the value (still right) left the pipeline, and the value as operand."""
    if written.image is None or written.channel is None or written.y is None or written.x is None:
        return written
    outputs = finals = 0
    for job in jobs:
        conv = written.stage == "write conv"
        (top, rows), (left, columns) = extents(job.job)
        kept = top, left
        if not conv:
            bands = job.job.tile[:2]
            (top, rows), (left, columns) = ((b.out_first, b.out_size) for b in bands)
            kept = bands[0].kept_first, bands[1].kept_first
        here = job.job.first <= written.image < job.job.first + job.job.images and len(
            job.requant if conv else job.pool
        )
        here = here and kept[0] <= written.y < top + rows and kept[1] <= written.x < left + columns
        group, lane = divmod(written.channel, config.lanes)
        group -= job.first_group
        if job.layer.name == written.layer and here and 0 <= group < job.groups:
            plane = group * job.job.images + written.image - job.job.first
            at = (plane * rows + written.y - top) * columns + written.x - left
            values, cycles, base = (
                (job.requant, trace.requant_cycle, outputs) if conv else (job.pool, trace.pool_cycle, finals)
            )
            return replace(
                written,
                step=job.first_step + job.steps - 1,
                cycle=int(cycles[base + at]),
                operands={"value at the pipeline's end": int(values[at, lane])},
                note=f"{written.note} the value was right in the pipeline and wrong in memory".strip(),
            )
        outputs += len(job.requant)
        finals += len(job.pool)
    return written
