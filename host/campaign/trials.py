"""What trial number n is: which faults on which images, a function of the seed and n only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from host.campaign.permutation import Permutation
from host.campaign.space import STUCK, FaultSpace, Place, SpaceError, StuckSpace, plan_of
from host.faults import spec
from host.faults.conditions import Conditions, StuckBit
from host.faults.models import Fault
from host.faults.plan import SITES, FaultPlan
from host.faults.spec import Spec
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

    def spec(self) -> Spec:
        """As JSON values; `host.faults.spec.model_from` makes an equal one of them."""
        return spec.fields_spec(self, spec.name_of(type(self)))

    @classmethod
    def made_from(cls, values: dict[str, Any]) -> SingleFault:
        """The one of the values that `spec` gave."""
        made: SingleFault = spec.made_of(cls, values)
        return made

    @staticmethod
    def words(brief: Spec) -> str:
        """Its description as a reader is told it."""
        if STUCK in brief["sites"]:
            return "One stuck bit a trial, uniform over all bits of all lanes' adders and accumulators, all different."
        where = f" in {', '.join(brief['layers'])}" if brief["layers"] else ""
        return f"One flip a trial ({', '.join(brief['sites'])}{where}), uniform over the whole space, all different."

    @property
    def stuck(self) -> bool:
        """Whether its faults are stuck bits."""
        return self.sites == (STUCK,)


spec.register(SingleFault)

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


def faults_words(faults: Faults) -> str:
    """A fault model as a reader is told it."""
    return words(spec.brief(faults.spec()))


def words(described: Spec) -> str:
    """A fault model's brief description as a reader is told it."""
    said = spec.words(described)
    return said if spec.class_of(described) is SingleFault else f"In every trial: {said}."
