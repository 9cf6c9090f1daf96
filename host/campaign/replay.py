"""One trial again, on the RTL: the same fault on one image, and how it spreads through stages and layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from host.campaign.campaign import FAULTS, STORE, CampaignError
from host.campaign.masking import where_any_masked, where_masked
from host.campaign.outcomes import Ranking
from host.campaign.space import Place
from host.campaign.store import Store
from host.campaign.trials import Faults, Trial, words
from host.campaign.worker import DATA, WRITTEN_ANEW, Setup
from host.devices.device import Device, Int8, LaunchReport
from host.devices.runtime import Outputs, Runtime
from host.devices.simulation import SimulationDevice
from host.faults.conditions import StuckBit
from host.faults.spec import Spec, SpecError, brief, model_from
from host.program.arrangement import steps
from host.program.layers import INPUT
from host.program.program import Program
from host.schedule.launch import Launch
from host.store.checked import tensors_digest
from host.store.sealed import read_sealed
from host.verification.expect import extents
from hw.config import Config
from hw.descriptor import Flag
from hw.files import ReadError
from sim.probe import Trace

CYCLE_NS = 10
"""Simulated nanoseconds of a clock cycle; the clock's edge of cycle c is at `(c - 1) * CYCLE_NS` in the waveform."""

STAGES = ("features", "weights", "acc", "requant", "pool")
"""What the probes show, in the order of the data."""
WORDS = {
    "features": "feature operands",
    "weights": "weight operands",
    "acc": "accumulators",
    "requant": "requantised",
    "pool": "final outputs",
}
SHOWN_BY = {"mac": "acc", "weight": "weights", "input": "features", "feature": "pool"}
"""The stage at which a fault of a site is first seen."""


@dataclass(frozen=True)
class Spread:
    """Records of one layer that differ from the fault-free run.

    Attributes
    ----------
    layer : str
    wrong : dict of (int, int, int or None)
        By stage: values that differ, values there are, and the clock cycle of the first that differs.
    """

    layer: str
    wrong: dict[str, tuple[int, int, int | None]]


@dataclass(frozen=True)
class Replay:
    """What a trial did on the RTL.

    Attributes
    ----------
    trial, arm, image, position : what was replayed
    place : Place, StuckBit or None
        The fault, if it is a single one.
    flips : int
        Of the trial's plan.
    where : str
        The faults, in words.
    cycle : int or None
        Clock cycle in which the probes first see the faults; None if they see none (a protected layer).
    spread : list of Spread
        Layers on the accelerator, in order; a layer that is tiled, once.
    differs : dict of (int, int)
        By layer: final output values that differ, and values there are.
    masked_at : (str, str) or None
        Layer and stage at which the faults disappeared.
    classes : (list of int, list of int)
        Top five without and with the fault.
    label : int
    waves : tuple of Path
        Waveforms with and without the fault; empty if none were asked for.
    config : Config
        Of the accelerator.
    """

    trial: int
    arm: str
    image: int
    position: int
    place: Place | StuckBit | None
    flips: int
    where: str
    cycle: int | None
    spread: list[Spread]
    differs: dict[str, tuple[int, int]]
    masked_at: tuple[str | None, str] | None
    classes: tuple[list[int], list[int]]
    label: int
    waves: tuple[Path, ...]
    config: Config

    @property
    def time_ns(self) -> int | None:
        """Where the wrong value appears in the waveform: one edge before the probes, which sample it, note it."""
        return None if self.cycle is None else (self.cycle - 2) * CYCLE_NS

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trial": self.trial,
            "arm": self.arm,
            "image": self.image,
            "position": self.position,
            "fault": _as_dict(self.place),
            "faults": self.where,
            "flips": self.flips,
            "cycle": self.cycle,
            "time_ns": self.time_ns,
            "waves": [str(path) for path in self.waves],
            "masked_at": self.masked_at,
            "spread": [
                {
                    "layer": s.layer,
                    **{k: dict(zip(("wrong", "of", "cycle"), v, strict=True)) for k, v in s.wrong.items()},
                }
                for s in self.spread
            ],
            "outputs": {name: {"wrong": wrong, "of": of} for name, (wrong, of) in self.differs.items()},
            "top_clean": self.classes[0],
            "top_faulty": self.classes[1],
            "label": self.label,
        }

    def lines(self) -> list[str]:
        """In words."""
        found = [f"trial {self.trial}, arm {self.arm}, image {self.image}: {self.where}"]
        if self.cycle is None:
            found.append("nothing in the accelerator differs")
        else:
            found.append(
                f"the probes see the fault in cycle {self.cycle}; in the waveform it stands from {self.time_ns} ns"
            )
        on_rtl = {spread.layer: spread for spread in self.spread}
        for name, (wrong, of) in self.differs.items():
            spread = on_rtl.get(name)
            if spread is not None and any(count for count, _, _ in spread.wrong.values()):
                parts = [
                    f"{WORDS[stage]} {count:,} of {total:,} from cycle {cycle}"
                    for stage, (count, total, cycle) in spread.wrong.items()
                    if count
                ]
                found.append(f"  {name}: wrong {'; '.join(parts)}")
            elif wrong:
                found.append(f"  {name} (on the CPU): wrong final outputs {wrong:,} of {of:,}")
        if self.masked_at is not None:
            layer, stage = self.masked_at
            where = "masked" if layer is None else f"masked in {layer}"
            found.append(f"{where} at stage {stage}: the output is the fault-free one")
        else:
            before, after = self.classes
            if before == after:
                found.append(f"the five classes stay {before} (label {self.label})")
            else:
                found.append(f"the five classes were {before}, are {after} (label {self.label})")
        return found


MOST_FAULTS = 1 << 30
"""Bytes of a fault model's file: a plan of 25 million flips."""

Make = Callable[[Config, Path | None], Device]


def simulation(config: Config, waves: Path | None) -> Device:
    """The accelerator's RTL with probes, one process."""
    return SimulationDevice(config, processes=1, waves=waves)


def replay(
    folder: Path,
    number: int,
    *,
    arm: str | None = None,
    position: int | None = None,
    waves: Path | None = None,
    make: Make = simulation,
) -> Replay:
    """Run one trial's fault on one of its images, with and without the fault, and compare every probe record.

    Parameters
    ----------
    folder : Path
        The campaign's.
    number : int
        The trial.
    arm : str or None
        The first by default.
    position : int or None
        Of the image in the trial; by default the first on which the fault did most.
    waves : Path or None
        Folder for waveforms (FST) of both runs; their build of the simulator is about 90 times slower.
    make : callable (config, waves) -> Device
        A device with `trace`.

    Raises
    ------
    CampaignError
        If there is no such trial, arm or image, or the RTL does not give what the campaign recorded.
    StoreError
        If there is no campaign.
    """
    with Store(folder / STORE) as store:
        fingerprint = store.fingerprint
        arm = store.arms[0] if arm is None else arm
        if arm not in store.arms:
            raise CampaignError(f"no arm {arm!r}; there are {', '.join(store.arms)}")
        rows = store.query(
            "SELECT position, image, masked, sdc1, top1 FROM outcome WHERE number = ? AND arm = ? ORDER BY position",
            (number, arm),
        )
        digest = store.query("SELECT digest FROM trial WHERE number = ?", (number,))
        last = store.complete()
    if not rows:
        raise CampaignError(f"{folder}: no trial {number}; there are 0 to {last - 1}")
    if position is None:
        position = max(rows, key=lambda row: (row[3], -row[2], -row[0]))[0]
    if not 0 <= position < len(rows):
        raise CampaignError(f"trial {number} has images 0 to {len(rows) - 1}, not {position}")
    setup = _setup(folder, fingerprint)
    program = setup.program(arm)
    images, labels = setup.data()
    _check_files(folder, fingerprint, setup, images, labels)
    trial = setup.trials(program, len(images)).trial(number)
    if trial.plan.digest != digest[0][0]:
        raise CampaignError(f"{folder}: trial {number} is drawn differently now; use the versions of the campaign")
    x = images[trial.images[position : position + 1]]
    runs = []
    paths = () if waves is None else (waves / f"trial-{number}-faulty.fst", waves / f"trial-{number}-clean.fst")
    if waves is not None:
        waves.mkdir(parents=True, exist_ok=True)
    config = replace(program.config, probe=True)
    for at, faulty in enumerate((True, False)):
        device = make(config, paths[at].absolute() if paths else None)
        try:
            runtime = _Traced(program, device)
            outputs = runtime.forward(x, plan=trial.plan if faulty else None, first_image=position)
            runs.append((outputs, runtime.launches))
        finally:
            device.close()
    (wrong, seen), (clean, expected) = runs
    _check_recorded(program, wrong, clean, rows[position], int(labels[trial.images[position]]), number)
    spread = _spread(program, seen, expected)
    masked: tuple[str | None, str] | None = None
    if rows[position][2]:
        values = {INPUT: program.fold_input(x), **clean.out}
        if isinstance(trial.place, Place):
            masked = where_masked(program, trial.place, values, wrong.out)[0]
        else:
            masked = where_any_masked(program, trial.plan.of_images(np.array([position])), values, wrong.out)[0]
    return Replay(
        trial=number,
        arm=arm,
        image=int(trial.images[position]),
        position=position,
        place=trial.place,
        flips=len(trial.plan),
        where=_where(program, trial, fingerprint["faults"]),
        cycle=_cycle(trial.place, spread),
        spread=spread,
        differs={
            name: (int(np.count_nonzero(wrong.out[name] != clean.out[name])), clean.out[name].size)
            for name in program.names
        },
        masked_at=masked,
        classes=tuple(Ranking.of(o.out[program.names[-1]]).classes[0].tolist() for o in (clean, wrong)),
        label=int(labels[trial.images[position]]),
        waves=paths,
        config=config,
    )


def _check_files(folder: Path, fingerprint: dict[str, Any], setup: Setup, images: Int8, labels: Any) -> None:
    """Raise unless the folder's images and networks are those of the campaign."""
    found = tensors_digest("", {"images": images, "labels": labels})
    if found != fingerprint["data"]["sha256"]:
        raise CampaignError(f"{folder / DATA}: the images of another campaign; {WRITTEN_ANEW}")
    for arm, about in fingerprint["arms"].items():
        if setup.program(arm).digest != about["program"]:
            raise CampaignError(f"{folder}: the program of arm {arm!r} is of another campaign; {WRITTEN_ANEW}")


def _setup(folder: Path, fingerprint: dict[str, Any]) -> Setup:
    device = dict(fingerprint["device"])
    name, config = device.pop("name"), Config(**device.pop("config"))
    faults = _faults(folder / FAULTS, fingerprint["faults"])
    return Setup(
        folder, tuple(fingerprint["arms"]), name, config, device, faults, fingerprint["seed"], fingerprint["images"],
        tuple(fingerprint["excluded"]),
    )  # fmt: skip


def _faults(path: Path, described: Spec) -> Faults:
    """The campaign's fault model, which must be the one that its fingerprint describes."""
    remedy = "run the campaign's command again, which writes it anew"
    try:
        whole = read_sealed(path, MOST_FAULTS).get("faults")
        if brief(whole) != described:
            raise CampaignError(f"{path}: the fault model of another campaign; {remedy}")
        return cast("Faults", model_from(whole))
    except (ReadError, SpecError) as error:
        raise CampaignError(f"{error}; {remedy}") from error


class _Traced(Runtime):
    """Keeps each launch with its probe trace."""

    def __init__(self, program: Program, device: Device) -> None:
        super().__init__(program, device)
        self.launches: list[tuple[Launch, Trace]] = []

    def _execute(self, launch: Launch) -> LaunchReport:
        report = super()._execute(launch)
        self.launches.append((launch, self.device.trace()))  # type: ignore[attr-defined]
        return report


def _check_recorded(
    program: Program, wrong: Outputs, clean: Outputs, row: tuple[Any, ...], label: int, number: int
) -> None:
    last = program.names[-1]
    _, _, masked, sdc1, top1 = row
    before, after = Ranking.of(clean.out[last]).first[0], Ranking.of(wrong.out[last]).first[0]
    found = int(np.array_equal(wrong.out[last], clean.out[last])), int(before != after), int(after == label)
    if found != (masked, sdc1, top1):
        raise CampaignError(
            f"trial {number} goes otherwise on the RTL than on the campaign's device: (masked, SDC-1, top-1) "
            f"{found}, recorded {(masked, sdc1, top1)}; 'redline verify' finds where they differ"
        )


def _as_dict(place: Place | StuckBit | None) -> dict[str, Any] | None:
    if place is None:
        return None
    return asdict(place) if isinstance(place, Place) else place._asdict()


def _where(program: Program, trial: Trial, described: dict[str, Any]) -> str:
    place = trial.place
    if place is None:
        flips = f" {len(trial.plan):,} flips in {len(trial.images)} images." if len(trial.plan) else ""
        return words(described) + flips
    if isinstance(place, StuckBit):
        return f"lane {place.lane}, {place.bank}, bit {place.bit} stuck at {place.value}"
    layer = program.layer(place.layer)
    shape = {
        "mac": layer.conv_shape,
        "weight": layer.weight_shape,
        "feature": layer.out_shape,
        "input": program.stored_input_shape,
    }[place.site]
    index = tuple(int(i) for i in np.unravel_index(place.output, shape))
    what = {"mac": "accumulator", "weight": "weight", "feature": "output", "input": "input"}[place.site]
    after = f" after step {place.step} of {steps(layer, program.config)}" if place.site == "mac" else ""
    return f"{place.layer}, {what} {index}{after}, bit {place.bit}"


def _spread(program: Program, wrong: list[tuple[Launch, Trace]], clean: list[tuple[Launch, Trace]]) -> list[Spread]:
    """Records that differ, by layer."""
    found: dict[str, dict[str, tuple[int, int, int | None]]] = {}
    for (launch, seen), (_, expected) in zip(wrong, clean, strict=True):
        at = dict.fromkeys(("step", "output", "final"), 0)
        unit = launch.units[0]
        for job, flags in zip(unit.jobs, unit.descriptors["flags"], strict=True):
            if not job.groups:
                continue  # it only loads
            layer = program.layers[job.layer]
            (_, rows), (_, columns) = extents(job)
            planes = job.groups * job.images
            outputs, taken = planes * rows * columns, steps(layer, program.config)
            counts = {
                "step": outputs * (taken if job.output is None else job.output.taps.steps),
                "output": 0 if flags & Flag.PARTIAL else outputs,
                # Those of jobs with one output are counted with the last of the jobs that are pooled together.
                "final": 0
                if flags & (Flag.PARTIAL | Flag.MORE)
                else planes * job.tile.rows.out_size * job.tile.columns.out_size,
            }
            mine = found.setdefault(layer.name, dict.fromkeys(STAGES, (0, 0, None)))
            for stage, kind, cycles in (
                ("features", "step", seen.step_cycle),
                ("weights", "step", seen.step_cycle),
                ("acc", "step", seen.acc_cycle),
                ("requant", "output", seen.requant_cycle),
                ("pool", "final", seen.pool_cycle),
            ):
                here = slice(at[kind], at[kind] + counts[kind])
                mine[stage] = _added(
                    mine[stage], getattr(seen, stage)[here], getattr(expected, stage)[here], cycles[here]
                )
            for kind, count in counts.items():
                at[kind] += count
    return [Spread(name, stages) for name, stages in found.items()]


def _added(
    before: tuple[int, int, int | None], seen: Int8, expected: Int8, cycles: npt.NDArray[np.uint64]
) -> tuple[int, int, int | None]:
    different = (seen != expected).reshape(len(seen), -1)
    count, rows = int(different.sum()), np.flatnonzero(different.any(axis=1))
    first = before[2]
    if len(rows) and first is None:
        first = int(cycles[rows[0]])
    return before[0] + count, before[1] + different.size, first


def _cycle(place: Place | StuckBit | None, spread: list[Spread]) -> int | None:
    """When the faults are first seen."""
    if isinstance(place, Place):
        return next((s.wrong[SHOWN_BY[place.site]][2] for s in spread if s.layer == place.layer), None)
    cycles = [cycle for s in spread for _, _, cycle in s.wrong.values() if cycle is not None]
    return min(cycles, default=None)
