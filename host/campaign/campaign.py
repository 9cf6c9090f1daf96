"""A campaign: arms (networks, protected or not) under the same trials, run until a rule is met, and taken up again."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from host.campaign import pool, stop
from host.campaign.stop import HalfWidth, Minutes, Rule, Trials
from host.campaign.store import SCHEMA, Counted, OutcomeRow, Store, StoreError
from host.campaign.trials import Faults
from host.campaign.worker import DATA, Setup, data_file
from host.datasets.data import Labelled
from host.devices import registry
from host.devices.device import Int8
from host.devices.emulator import native
from host.devices.emulator.device import EmulatorDevice
from host.faults.plan import SITES, extents
from host.faults.spec import brief
from host.interrupt import Interrupted, deferred_interrupt
from host.program.layers import INPUT
from host.program.program import Program
from host.stats import Clustered, planned_trials
from host.store.checked import tensors_digest
from host.store.files import sweep, write_atomic
from host.store.sealed import write_sealed
from host.training.twin import Twin
from hw.errors import RedlineError
from sim.lock import locked

STORE = "campaign.db"
FAULTS = "faults.json"
"""The whole fault model, of which the fingerprint has the brief description."""
VERSIONS = ("redline", "numpy")
"""Packages whose version decides results: numpy draws the faults. What else matters shows in the programs' digests."""
ABOUT = ("torch", "scipy", "safetensors")

log = logging.getLogger("redline.campaign")

Progress = Callable[[int, int, str], None]
"""Called with trials done, trials expected in all, and a word on how it goes."""


class CampaignError(RedlineError, ValueError):
    """A campaign cannot be run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes
    ----------
    trials : int
        Trials that count: 0 to this number, without a gap.
    reason : str
    """

    trials: int
    reason: str


def preferred_device() -> str:
    """The emulator where its kernels can be had, else the reference: the same bytes, more slowly."""
    if native.asked() == "reference":
        return "reference"
    try:
        native.load()
    except native.KernelError as error:
        log.warning("trials run on the reference, which is much slower: %s", error)
        return "reference"
    return "emulator"


@dataclass
class Campaign:
    """Arms, faults and data.

    Parameters
    ----------
    arms : Twin, or dict of Twin
        What is compared, by name; all see the same faults on the same images. Each twin's `protected` layers run on the
        CPU; layers that the accelerator cannot run at all have no faults in any arm.
    faults : SingleFault or Fault
    data : images with labels
    images : int
        Images a trial, drawn anew for each.
    seed : int
    device : str
        Name of the workers' devices; `preferred_device` by default.
    options : dict
        The device's own options (`memory_bytes`, ...).
    name : str
        Of the data, for the record.

    Raises
    ------
    CampaignError
        If the arms do not fit each other.
    """

    arms: Twin | Mapping[str, Twin]
    faults: Faults
    data: Labelled
    images: int = 32
    seed: int = 0
    device: str = field(default_factory=preferred_device)
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "data"

    def __post_init__(self) -> None:
        twins = {"original": self.arms} if isinstance(self.arms, Twin) else dict(self.arms)
        if not twins:
            raise CampaignError("a campaign needs at least one network")
        for name, twin in twins.items():
            if not re.fullmatch(r"[\w+.-]+", name):
                raise CampaignError(f"an arm's name has letters, digits and _ + . - only, not {name!r}")
            twin.refresh()
        self.programs = {name: twin.program for name, twin in twins.items()}
        (first, program), *others = self.programs.items()
        for name, other in others:
            _check_same_space(first, program, name, other)
        self.excluded = tuple(next(iter(twins.values())).fallback)
        self.quantised, self.labels = _quantised(program, self.data)
        # Fails now rather than in a worker.
        self.trials = self.setup(Path()).trials(program, len(self.labels))
        _ = self.trials.space

    def setup(self, folder: Path) -> Setup:
        """What workers need."""
        config = next(iter(self.programs.values())).config
        return Setup(
            folder, tuple(self.programs), self.device, config, dict(self.options), self.faults, self.seed, self.images,
            self.excluded,
        )  # fmt: skip

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides every result."""
        program = next(iter(self.programs.values()))
        return {
            "faults": brief(self.faults.spec()),
            "seed": self.seed,
            "images": self.images,
            "data": {
                "name": self.name,
                "images": len(self.labels),
                "sha256": tensors_digest("", {"images": self.quantised, "labels": self.labels}),
            },
            "arms": {
                name: {
                    "weights": tensors_digest("", _tensors(program)),
                    "protected": [la.name for la in program.layers if la.placement == "cpu"],
                    "program": program.digest,
                }
                for name, program in self.programs.items()
            },
            "excluded": list(self.excluded),
            "device": {"name": self.device, "config": asdict(program.config), **self.options},
            "versions": {"store": SCHEMA, **{name: _version(name) for name in VERSIONS}},
        }

    def computed_by(self) -> str:
        """What will compute the trials, in a line: a device may have to leave them to the reference."""
        if not issubclass(registry.device_class(self.device), EmulatorDevice):
            return self.device
        config = next(iter(self.programs.values())).config
        with registry.device(self.device, config, **self.options) as device:
            return device.describe()

    def prepare(self, folder: Path) -> Store:
        """The campaign's folder and file, new or found again.

        Raises
        ------
        StoreError
            If the folder holds another campaign; names what changed.
        """
        fingerprint = self.fingerprint
        about: dict[str, Any] = {name: _version(name) for name in ABOUT}
        about |= {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
        sweep(folder)
        store = Store(folder / STORE, fingerprint, about)
        # The same bytes each time, so writing them again mends a folder from which they were deleted.
        for name, program in self.programs.items():
            program.save(folder / "programs" / f"{name}.safetensors")
        write_atomic(folder / DATA, data_file(self.quantised, self.labels))
        write_sealed(folder / FAULTS, {"faults": self.faults.spec()})
        return store

    def run(
        self,
        until: Rule | Iterable[Rule],
        store: str | Path,
        *,
        workers: int | None = None,
        executor: pool.Executor = "processes",
        progress: Progress | None = None,
    ) -> Finished:
        """Run trials until a rule is met, or all single faults, or all images under a clock, have been tried.

        Parameters
        ----------
        until : rule, or rules of which the first that is met counts
        store : path
            The campaign's folder; one that holds the same campaign is taken up where it stopped.
        workers : int
            Processes; by default as many as processors. 0: this process.
        executor : "processes" or "ray"
            On this machine, or on those of a Ray cluster; the results are the same.

        Raises
        ------
        StoreError
            If the folder holds another campaign, or another process is running it.
        PoolError
            If Ray is asked for and cannot be had.
        Interrupted
            After Ctrl-C, with everything stored.
        """
        folder = Path(store)
        rules = [until] if isinstance(until, HalfWidth | Trials | Minutes) else list(until)
        if not rules:
            raise CampaignError("a campaign needs a rule to stop: HalfWidth, Trials or Minutes")
        with _alone(folder), self.prepare(folder) as file, deferred_interrupt() as interrupted:
            return _Run(self, file, folder, rules, workers, executor, progress, interrupted).go()


class _Run:
    """One run of a campaign: hands out trials, stores results, looks whether it is time to stop."""

    def __init__(
        self,
        campaign: Campaign,
        store: Store,
        folder: Path,
        rules: list[Rule],
        workers: int | None,
        executor: pool.Executor,
        progress: Progress | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self.campaign, self.store, self.folder, self.workers, self.executor = campaign, store, folder, workers, executor
        self.widths = [rule for rule in rules if isinstance(rule, HalfWidth)]
        budgets = [rule.trials for rule in rules if isinstance(rule, Trials)]
        most = campaign.trials.most
        self.most = min([*budgets, *([most] if most is not None else [])], default=None)
        self.exhaustive = most is not None and self.most == most
        minutes = [rule.minutes for rule in rules if isinstance(rule, Minutes)]
        self.deadline = time.monotonic() + 60 * min(minutes) if minutes else None
        self.progress, self.interrupted = progress, interrupted
        self.done = set(store.done().tolist())
        self.complete = 0
        self.settled = int(store.meta("settled") or 0)
        self.looked = self.settled
        self.counts = {rule: [_Tally(store, rule.of, arm) for arm in campaign.programs] for rule in self.widths}

    def go(self) -> Finished:
        session = self.store.begin_session()
        self._advance()
        decided = self._look()
        if decided is None and not self._all_done():
            setup = self.campaign.setup(self.folder)
            results = pool.run(setup, self._missing(), self.workers, self._pause, self.executor)
            try:
                for chunk in results:
                    self.store.add(chunk.trials, chunk.outcomes)
                    self.done.update(trial.number for trial in chunk.trials)
                    for tallies in self.counts.values():
                        for tally in tallies:
                            tally.add(chunk.outcomes)
                    self._advance()
                    self._report()
                    decided = self._look()
                    if decided is not None:
                        break
            finally:
                results.close()  # type: ignore[attr-defined]
        return self._end(session, decided)

    def _missing(self) -> Iterator[int]:
        number = 0
        while self.most is None or number < self.most:
            if number not in self.done:
                yield number
            number += 1

    def _all_done(self) -> bool:
        return self.most is not None and self.complete >= self.most

    def _pause(self) -> bool:
        return self.interrupted() or (self.deadline is not None and time.monotonic() > self.deadline)

    def _advance(self) -> None:
        while self.complete in self.done:
            self.complete += 1

    def _look(self) -> tuple[int, str] | None:
        """Where and why a half-width rule ends the campaign, if one does."""
        end = self.complete if self.most is None else min(self.complete, self.most)
        for trials in stop.looks(self.looked, end):
            self.looked = trials + 1
            for rule in self.widths:
                if rule.met([tally.counted() for tally in self.counts[rule]], trials):
                    return trials, f"the interval of {rule.of} is narrower than +-{rule.half_width}"
        return None

    def _report(self) -> None:
        if self.progress is None:
            return
        total = None if self.most is None else float(self.most)
        notes = []
        for rule in self.widths:
            # How many it will take, if what is known so far holds.
            widths = []
            for tally in self.counts[rule]:
                counted = tally.counted().first(self.complete)
                if len(counted.numbers) >= stop.LOOK:
                    rate = Clustered.of(counted.successes, counted.sizes, rule.confidence)
                    each = rate.trials / rate.clusters / rate.design_effect
                    need = planned_trials(rule.half_width, rate.value, rule.confidence) / each
                    widths.append(rate.half_width)
                    total = min(total or need, max(need, self.complete))
            if widths:
                notes.append(f"{rule.of} +-{100 * max(widths):.2f} %")
        self.progress(len(self.done), round(total or 0), ", ".join(notes))

    def _end(self, session: int, decided: tuple[int, str] | None) -> Finished:
        if decided is not None:
            trials, reason = decided
            # Trials beyond the look were begun before it: which ones they are is chance, so they do not stay.
            self.store.end_session(session, trials, reason, settled=trials)
            return Finished(trials, reason)
        if self._all_done():
            assert self.most is not None
            all_of = "image" if self.campaign.trials.deterministic else "single fault"
            reason = f"every {all_of} was tried" if self.exhaustive else f"{self.most} trials were asked for"
            # A longer campaign may have been here before: what it found stays.
            self.store.end_session(session, self.complete, reason, settled=self.complete)
            return Finished(self.complete, reason)
        if self.interrupted():
            self.store.end_session(session, self.complete, "interrupted")
            raise Interrupted(f"stopped after {len(self.done)} trials")
        self.store.end_session(session, self.complete, "time is up")
        return Finished(self.complete, "time is up")


class _Tally:
    """Successes by trial, of one outcome in one arm, kept up to date without asking the file each time."""

    def __init__(self, store: Store, outcome: str, arm: str) -> None:
        self.arm, self.outcome = arm, outcome
        known = store.count(outcome, arm)
        columns = known.numbers.tolist(), known.successes.tolist(), known.sizes.tolist()
        self.of = {number: (hits, size) for number, hits, size in zip(*columns, strict=True)}
        self._counted: Counted | None = None

    def add(self, outcomes: list[OutcomeRow]) -> None:
        self._counted = None
        for row in outcomes:
            if row.arm == self.arm:
                hit = 1 - row.masked - row.sdc1 if self.outcome == "benign" else getattr(row, self.outcome)
                before, size = self.of.get(row.number, (0, 0))
                self.of[row.number] = before + hit, size + 1

    def counted(self) -> Counted:
        if self._counted is None:
            numbers = np.array(sorted(self.of), np.int64)
            pairs = np.array([self.of[number] for number in numbers.tolist()], np.int64).reshape(-1, 2)
            self._counted = Counted(numbers, pairs[:, 0], pairs[:, 1])
        return self._counted


def started(folder: Path) -> bool:
    """Whether a folder holds a campaign, finished or not."""
    return (folder / STORE).exists()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process runs this campaign meanwhile; the lock goes with the process, however it ends."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise StoreError(f"{folder}: another process is running this campaign; wait for it or stop it") from error
        except OSError as error:
            raise StoreError(f"{error.filename or folder}: {error.strerror or error}") from error
        yield


def _check_same_space(first: str, program: Program, name: str, other: Program) -> None:
    """Raise unless two arms have the same layers with the same places, and read the same images."""
    same = (
        program.names == other.names
        and program.config == other.config
        and all(
            extents(program, at, site) == extents(other, at, site)
            for at in range(len(program.layers))
            for site in SITES
        )
    )
    if not same:
        raise CampaignError(
            f"arms {first!r} and {name!r} are different networks, or for different accelerators: the same faults "
            "cannot happen in both; run a campaign for each"
        )
    if (program.input_frac, program.tensor_shape(INPUT)) != (other.input_frac, other.tensor_shape(INPUT)):
        raise CampaignError(
            f"arms {first!r} and {name!r} read their images at different fractions: calibrate both alike"
        )


def _quantised(program: Program, data: Labelled) -> tuple[Int8, npt.NDArray[np.int64]]:
    """All images in the network's integers, and their labels."""
    parts = [program.quantise_input(x) for x, _ in data.batches(500)]
    return np.ascontiguousarray(np.concatenate(parts)), data.labels.to(torch.int64).numpy()


def _tensors(program: Program) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {f"weight:{name}": program.weights[name] for name in program.names}
    return tensors | {f"bias:{name}": program.biases[name] for name in program.names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def digest_of(rows: list[tuple[Any, ...]]) -> str:
    """SHA-256 over rows of a store, hexadecimal: equal campaigns, equal digest."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(repr(row).encode())
    return sha.hexdigest()
