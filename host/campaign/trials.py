"""What trial number n is: which faults on which images, a function of the seed and n only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from host.campaign.permutation import Permutation
from host.campaign.space import STUCK, FaultSpace, Place, SpaceError, StuckSpace, plan_of
from host.faults.conditions import Conditions, StuckBit
from host.faults.models import Combined, Fault, SoftErrors
from host.faults.overclock import Overclock
from host.faults.plan import SITES, FaultPlan
from host.faults.stuck import StuckAt
from host.program.program import Program


@dataclass(frozen=True)
class SingleFault:
    """One fault a trial, the same for all images of the trial; no two trials have the same.

    Parameters
    ----------
    sites : str or sequence of str
        Where a bit flips: "mac" (the accumulator after a step), "weight", "feature", "input". Or "stuck", alone: a bit
        of a lane's adders or accumulator is stuck at 0 or 1.
    layers : sequence of str
        Only these layers; all if empty.
    """

    sites: tuple[str, ...] = ("mac",)
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sites", "layers"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        unknown = [site for site in self.sites if site not in (*SITES, STUCK)]
        if unknown or not self.sites:
            raise SpaceError(
                f"a single fault needs sites of {', '.join((*SITES, STUCK))}, not {', '.join(unknown) or 'none'}"
            )
        if STUCK in self.sites and (len(self.sites) > 1 or self.layers):
            raise SpaceError(
                "a stuck bit is a fault of the accelerator, in no layer and in all: give the site stuck alone, without "
                "layers"
            )

    @property
    def stuck(self) -> bool:
        """Whether its faults are stuck bits."""
        return self.sites == (STUCK,)


Faults = SingleFault | Fault


@dataclass(frozen=True)
class Trial:
    """One fault plan on some images.

    Attributes
    ----------
    number : int
    images : int64 array, shape (k,)
        Positions in the data; ascending, distinct. Image i of the plan is `images[i]`.
    plan : FaultPlan
    place : Place, StuckBit or None
        The one fault, of a `SingleFault`.
    """

    number: int
    images: npt.NDArray[np.int64]
    plan: FaultPlan
    place: Place | StuckBit | None


@dataclass(frozen=True)
class TrialSequence:
    """All trials of a campaign.

    Single faults are drawn without replacement, uniformly over the whole space (`Permutation`); the images of each
    trial anew, without replacement, uniformly from the data. Rates are drawn by the fault model under a seed of the
    trial's. A clock and stuck bits alone leave nothing to be drawn: their trials take the images in a random order, and
    end with the last, which would only repeat itself.

    Attributes
    ----------
    program : Program
        Only its structure matters.
    faults : SingleFault or Fault
    seed : int
    images : int
        Images a trial.
    data : int
        Images there are.
    excluded : tuple of str
        Layers that the accelerator cannot run; they have no faults.
    """

    program: Program
    faults: Faults
    seed: int
    images: int
    data: int
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SpaceError(f"seed must be 0 or more, not {self.seed}")
        if not 1 <= self.images <= self.data:
            raise SpaceError(f"a trial needs from 1 to {self.data} images (those there are), not {self.images}")

    @cached_property
    def space(self) -> FaultSpace | StuckSpace | None:
        """The space of single faults; None for rates and conditions."""
        return None if isinstance(self.faults, Fault) else space_of(self.faults, self.program, self.excluded)

    @property
    def most(self) -> int | None:
        """How many different trials there are; None: no end."""
        if self.deterministic:
            return -(-self.data // self.images)
        return None if self.space is None else self.space.size

    @property
    def deterministic(self) -> bool:
        """Whether every trial meets the same faults: a clock, stuck bits, and no rate."""
        return isinstance(self.faults, Fault) and set(self.faults.sites) <= {"clock", "stuck"}

    def trial(self, number: int) -> Trial:
        """Trial `number`, from 0."""
        if self.most is not None and not 0 <= number < self.most:
            raise IndexError(f"trial {number} of {self.most}")
        images = self._images(number)
        if self.space is None:
            assert isinstance(self.faults, Fault)
            own = int(np.random.SeedSequence([self.seed, 2, number]).generate_state(1, np.uint64)[0] >> 2)
            return Trial(number, images, self.faults.draw(self.program, 0, len(images), own), None)
        place = self.space.place(Permutation(self.space.size, ("faults", self.seed))(number))
        return Trial(number, images, plan_of(place, self.program.names, self.images), place)

    def _images(self, number: int) -> npt.NDArray[np.int64]:
        """Images of a trial, ascending."""
        if self.deterministic:
            order = Permutation(self.data, ("images", self.seed))
            first = number * self.images
            return np.sort([order(i) for i in range(first, min(first + self.images, self.data))])
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 1, number])))
        return np.sort(stream.choice(self.data, self.images, replace=False))


def space_of(faults: SingleFault, program: Program, excluded: tuple[str, ...] = ()) -> FaultSpace | StuckSpace:
    """The space from which single faults are drawn."""
    return StuckSpace(program.config) if faults.stuck else FaultSpace(program, faults.sites, faults.layers, excluded)


def conditions_of(faults: Faults) -> Conditions | None:
    """What holds in every trial: a clock, stuck bits."""
    return faults.conditions if isinstance(faults, Fault) else None


def describe(faults: Faults) -> dict[str, Any]:
    """A fault model as JSON values, for fingerprints."""
    if isinstance(faults, Combined):
        return {"model": "Combined", "parts": [describe(part) for part in faults.parts]}
    name = type(faults).__name__
    if isinstance(faults, Overclock):
        clock = faults.conditions.clock
        assert clock is not None
        return {
            "model": name,
            "period_ps": clock.period_ps,
            "voltage_scale": clock.voltage_scale,
            "delay_table": clock.table.hash,
        }
    if isinstance(faults, Fault) and faults.conditions is not None and not isinstance(faults, StuckAt):
        return {"model": name, "is": str(faults.conditions), "conditions": faults.conditions.digest}
    if is_dataclass(faults) and not isinstance(faults, type):
        return {"model": name, **{key: _plain(value) for key, value in asdict(faults).items()}}
    return {"model": name, "is": repr(faults)}


def faults_from(described: dict[str, Any], conditions: Conditions | None = None) -> Faults:
    """The fault model that `describe` described.

    Parameters
    ----------
    described : dict
    conditions : Conditions or None
        Those that the campaign kept: a clock's delay table is too long to be described.

    Raises
    ------
    SpaceError
        If it is one that is not Redline's own, or the conditions are those of another.
    """
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "model"}
    model = described["model"]
    if model == "Combined":
        parts = [faults_from(part, conditions) for part in described["parts"]]
        return Combined(tuple(part for part in parts if isinstance(part, Fault)))
    if model == "Overclock":
        clock = None if conditions is None else conditions.clock
        if clock is None or clock.table.hash != values["delay_table"]:
            raise SpaceError(f"the delay table {values['delay_table'][:12]} of the campaign's clock is not there")
        # What lies beyond the model was allowed when the campaign was made.
        return Overclock(
            table=clock.table, period_ns=values["period_ps"] / 1000, voltage_scale=values["voltage_scale"],
            beyond_model=True,
        )  # fmt: skip
    known: dict[str, type[SingleFault | SoftErrors | StuckAt]] = {
        "SingleFault": SingleFault,
        "SoftErrors": SoftErrors,
        "StuckAt": StuckAt,
    }
    if model not in known:
        raise SpaceError(f"faults of {model} cannot be drawn again from their description")
    return known[model](**values)


def words(described: dict[str, Any]) -> str:
    """A described fault model as a reader is told it."""
    model = described["model"]
    if model == "SingleFault" and STUCK in described["sites"]:
        return "One stuck bit a trial, uniform over all bits of all lanes' adders and accumulators, all different."
    if model == "SingleFault":
        where = f" in {', '.join(described['layers'])}" if described["layers"] else ""
        return (
            f"One flip a trial ({', '.join(described['sites'])}{where}), uniform over the whole space, all different."
        )
    parts = described["parts"] if model == "Combined" else [described]
    said = []
    for part in parts:
        if part["model"] == "SoftErrors":
            said.append(f"soft errors, {part['rate']:g} per {part['per']} ({', '.join(part['sites'])})")
        elif part["model"] == "Overclock":
            scale = "" if part["voltage_scale"] == 1 else f", delays x {part['voltage_scale']:g}"
            said.append(
                f"a clock of {1e6 / part['period_ps']:.1f} MHz (period {part['period_ps']} ps{scale}; delay table "
                f"{part['delay_table'][:12]})"
            )
        elif part["model"] == "StuckAt":
            said.append(f"bit {part['bit']} of lane {part['lane']}'s {part['site']} stuck at {part['value']}")
        else:
            said.append(", ".join(f"{key} {value}" for key, value in part.items()))
    return f"In every trial: {'; '.join(said)}."


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
