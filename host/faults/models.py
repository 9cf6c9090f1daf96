"""Fault models: what is drawn, at which rate; each draws the same plan for any device, batch split or process count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from host.faults import spec
from host.faults.conditions import Conditions
from host.faults.plan import EVERY_IMAGE, SITE_BITS, SITES, FaultPlan, extents
from host.faults.random_streams import Purpose, Streams
from host.faults.spec import Spec
from host.faults.stream import PlanStream
from host.program.program import Program
from host.store.sealed import digest

if TYPE_CHECKING:
    from host.training.twin import Twin

NEVER = 1e-300
"""Rates below are as good as 0, and have no finite mean gap."""
STORED_SITES = ("weight", "input", "feature")
"""Sites whose bits are stored: what a bit error rate refers to."""


class Fault(ABC):
    """A fault model. `+` combines models; their flips at one place cancel."""

    sites: tuple[str, ...]
    """Fault sites (`host.faults.plan.SITES`) that it hits; "clock" and "stuck" of conditions."""

    @property
    def conditions(self) -> Conditions | None:
        """What holds during the whole run: a clock, stuck bits."""
        return None

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        spec.register(cls)

    def spec(self) -> Spec:
        """The whole model as JSON values, long ones with their SHA-256: `Fault.from_spec` makes an equal one of it.

        A class whose objects hold numbers, texts, arrays, other models, or lists and mappings of them has nothing to
        add. Any other gives its own, with `spec.name_of(type(self))` under "model", and takes it in `made_from`.

        Raises
        ------
        SpecError
            If it cannot be described.
        """
        return spec.fields_spec(self, spec.name_of(type(self)))

    @staticmethod
    def from_spec(described: Spec) -> Fault:
        """The model that `spec` described.

        Raises
        ------
        SpecError
            If the description is damaged, or of a class that this program has not imported.
        """
        found = spec.model_from(described)
        if not isinstance(found, Fault):
            raise spec.SpecError(f"a {type(found).__name__} is no fault model")
        return found

    @classmethod
    def made_from(cls, values: dict[str, Any]) -> Fault:
        """The model of the values that `spec` gave, lists as tuples."""
        made: Fault = spec.made_of(cls, values)
        return made

    @classmethod
    def words(cls, brief: Spec) -> str:
        """Its brief description (`host.faults.spec.brief`) as a reader is told it."""
        return ", ".join(f"{key} {value}" for key, value in brief.items())

    @property
    def digest(self) -> str:
        """SHA-256 of the whole model, hexadecimal: the same in every process; `SpecError` as `spec`."""
        return digest(self.spec())

    @abstractmethod
    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        """The concrete faults of a run.

        Parameters
        ----------
        program : Program
        first_image, images : int
            Range of image indices; an image's faults depend on its index, not on the range.
        seed : int
            0 or more.

        Returns
        -------
        FaultPlan
            Includes the faults in weights, which depend on the seed only.
        """

    def stream(self, program: Program, seed: int) -> PlanStream:
        """The faults of a run as a plan whose parts are drawn when asked for."""
        return PlanStream(self, program, seed)

    def on(
        self, twin: Twin, *, seed: int, first_image: int = 0, purpose: Purpose = "evaluation"
    ) -> AbstractContextManager[Twin]:
        """Context in which the twin's forward passes meet these faults; leaving it restores the fault-free state.

        `evaluate` meets those of the purpose "evaluation". A training loop says `purpose="training"`: then it meets
        other faults than the test, whatever the seeds.
        """
        return twin.faulty(self, seed=seed, first_image=first_image, purpose=purpose)

    def __add__(self, other: Fault) -> Fault:
        return Combined((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Combined(Fault):
    """Several fault models at once, drawn independently."""

    parts: tuple[Fault, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.parts, tuple) and all(isinstance(part, Fault) for part in self.parts)):
            raise TypeError(f"the parts of combined faults are fault models, not {self.parts!r:.60}")

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """Sites of all parts."""
        return tuple(dict.fromkeys(site for part in self.parts for site in part.sites))

    @property
    def conditions(self) -> Conditions | None:
        """Those of all parts."""
        found = [part.conditions for part in self.parts if part.conditions is not None]
        return sum(found[1:], found[0]) if found else None

    @classmethod
    def words(cls, brief: Spec) -> str:
        return "; ".join(spec.words(part) for part in brief["parts"])

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        plan = FaultPlan.of(program.names)
        for number, part in enumerate(self.parts):
            # Each part has a stream of its own: two equal models would otherwise cancel.
            own = seed if number == 0 else int(Streams(seed, "part", number).of(0).integers(1 << 62))
            plan = plan + part.draw(program, first_image, images, own)
        return plan


@dataclass(frozen=True)
class SoftErrors(Fault):
    """Independent bit flips, uniform over the whole fault space of the network.

    Parameters
    ----------
    rate : float
        Probability, 0 to 1, that one place is hit.
    per : "bit" or "mac"
        "bit": a place is one stored bit of the `sites` (bit error rate). "mac": a place is one MAC result, the
        accumulator of one output after one step; where it is hit, one of its 32 bits, chosen uniformly, flips.
    sites : str or sequence of str
        For "bit", any of "weight", "input", "feature"; all three if empty. For "mac" always ("mac",).

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    rate: float
    per: Literal["bit", "mac"] = "bit"
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool | str) or not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be from 0 to 1, not {self.rate!r}")
        if self.per not in ("bit", "mac"):
            raise ValueError(f'per must be "bit" or "mac", not {self.per!r}')
        legal = STORED_SITES if self.per == "bit" else ("mac",)
        chosen = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites) or legal
        for site in chosen:
            if site not in legal:
                raise ValueError(f"a rate per {self.per} has the sites {', '.join(legal)}, not {site!r}")
        # A site named twice would have the same flips twice, which cancel.
        object.__setattr__(self, "sites", tuple(dict.fromkeys(chosen)))
        object.__setattr__(self, "rate", float(self.rate))

    @classmethod
    def words(cls, brief: Spec) -> str:
        return f"soft errors, {brief['rate']:g} per {brief['per']} ({', '.join(brief['sites'])})"

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        rows: list[npt.NDArray[np.int64]] = []
        for site in self.sites:
            for layer in range(len(program.layers)):
                streams = Streams(seed, site, layer)
                where = [EVERY_IMAGE] if site == "weight" else range(first_image, first_image + images)
                outputs, steps = extents(program, layer, site)
                if not outputs:
                    continue
                for image in where:
                    output, step, bit = self._one(outputs, steps, SITE_BITS[site], streams.of(image + 1))
                    if len(output):
                        rows.append(_rows(image, layer, site, output, step, bit))
        return FaultPlan.of(program.names, *(np.concatenate(rows, axis=1) if rows else ()))

    def _one(
        self, outputs: int, steps: int, bits: int, stream: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """(output, step, bit) of the hits in one image of one layer at one site."""
        if self.per == "mac":
            hit = hits(outputs * steps, self.rate, stream)
            output, step = np.divmod(hit, steps)
            return output, step, (stream.random(len(hit)) * bits).astype(np.int64)
        hit = hits(outputs * bits, self.rate, stream)
        output, bit = np.divmod(hit, bits)
        return output, np.zeros_like(output), bit


@dataclass(frozen=True)
class Replay(Fault):
    """A drawn plan as a fault model: the same flips whatever the seed."""

    plan: FaultPlan

    def __post_init__(self) -> None:
        if not isinstance(self.plan, FaultPlan):
            raise TypeError(f"a FaultPlan can be replayed, not {self.plan!r:.60}")

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """Sites that the plan hits."""
        return self.plan.sites

    @property
    def conditions(self) -> Conditions | None:
        """The plan's."""
        return self.plan.conditions

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        self.plan.check(program)
        return self.plan.images(first_image, images)


def hits(size: int, rate: float, stream: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted indices below `size`, each hit independently with probability `rate`.

    Draws the gaps between hits (exponential, rounded down to whole places: geometric), so the cost is that of the hits.
    """
    if rate < NEVER or size == 0:
        return np.zeros(0, np.int64)
    if rate == 1:
        return np.arange(size, dtype=np.int64)
    scale = -1.0 / np.log1p(-rate)
    found: list[npt.NDArray[np.int64]] = []
    at = -1
    while at < size:
        mean = (size - at) * rate
        gaps = stream.standard_exponential(int(mean + 4 * np.sqrt(mean)) + 8, method="inv") * scale
        # A gap beyond the end is as good as any longer one, and must not overflow the sum.
        steps = np.minimum(gaps, size).astype(np.int64) + 1
        places = at + np.cumsum(steps)
        found.append(places[places < size])
        at = int(places[-1])
    return np.concatenate(found)


def _rows(image: int, layer: int, site: str, *columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    output, step, bit = columns
    same = np.ones_like(output)
    return np.stack([same * image, same * layer, same * SITES.index(site), output, step, bit])


def _parts(fault: Fault) -> tuple[Fault, ...]:
    return fault.parts if isinstance(fault, Combined) else (fault,)
