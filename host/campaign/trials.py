"""What trial number n is: which faults on which images, a function of the seed and n only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from host.campaign.permutation import Permutation
from host.campaign.space import FaultSpace, Place, SpaceError, plan_of
from host.faults.models import Combined, Fault, SoftErrors
from host.faults.plan import SITES, FaultPlan
from host.program.program import Program


@dataclass(frozen=True)
class SingleFault:
    """One flip a trial, the same for all images of the trial; no two trials have the same.

    Parameters
    ----------
    sites : str or sequence of str
        Where: "mac" (the accumulator after a step), "weight", "feature", "input".
    layers : sequence of str
        Only these layers; all if empty.
    """

    sites: tuple[str, ...] = ("mac",)
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sites", "layers"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        unknown = [site for site in self.sites if site not in SITES]
        if unknown or not self.sites:
            raise SpaceError(f"a single fault needs sites of {', '.join(SITES)}, not {', '.join(unknown) or 'none'}")


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
    place : Place or None
        The one flip, of a `SingleFault`.
    """

    number: int
    images: npt.NDArray[np.int64]
    plan: FaultPlan
    place: Place | None


@dataclass(frozen=True)
class TrialSequence:
    """All trials of a campaign.

    Single faults are drawn without replacement, uniformly over the whole space (`Permutation`); the images of each
    trial anew, without replacement, uniformly from the data. Rates are drawn by the fault model under a seed of the
    trial's.

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
    def space(self) -> FaultSpace | None:
        """The space of single faults; None for rates."""
        if isinstance(self.faults, SingleFault):
            return FaultSpace(self.program, self.faults.sites, self.faults.layers, self.excluded)
        return None

    @property
    def most(self) -> int | None:
        """How many different trials there are; None: no end."""
        return None if self.space is None else self.space.size

    def trial(self, number: int) -> Trial:
        """Trial `number`, from 0."""
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 1, number])))
        images = np.sort(stream.choice(self.data, self.images, replace=False))
        if self.space is None:
            assert isinstance(self.faults, Fault)
            own = int(np.random.SeedSequence([self.seed, 2, number]).generate_state(1, np.uint64)[0] >> 2)
            return Trial(number, images, self.faults.draw(self.program, 0, self.images, own), None)
        place = self.space.place(Permutation(self.space.size, ("faults", self.seed))(number))
        return Trial(number, images, plan_of(place, self.program.names, self.images), place)


def describe(faults: Faults) -> dict[str, Any]:
    """A fault model as JSON values, for fingerprints."""
    if isinstance(faults, Combined):
        return {"model": "Combined", "parts": [describe(part) for part in faults.parts]}
    name = type(faults).__name__
    if isinstance(faults, Fault) and faults.conditions is not None:
        # A clock comes with a delay table: its hash says which.
        return {"model": name, "is": str(faults.conditions), "conditions": faults.conditions.digest}
    if is_dataclass(faults) and not isinstance(faults, type):
        return {"model": name, **{key: _plain(value) for key, value in asdict(faults).items()}}
    return {"model": name, "is": repr(faults)}


def faults_from(described: dict[str, Any]) -> Faults:
    """The fault model that `describe` described.

    Raises
    ------
    SpaceError
        If it is one that is not Redline's own.
    """
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "model"}
    if described["model"] == "Combined":
        parts = [faults_from(part) for part in described["parts"]]
        return Combined(tuple(part for part in parts if isinstance(part, Fault)))
    known: dict[str, type[SingleFault | SoftErrors]] = {"SingleFault": SingleFault, "SoftErrors": SoftErrors}
    if described["model"] not in known:
        raise SpaceError(f"faults of {described['model']} cannot be drawn again from their description")
    return known[described["model"]](**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
