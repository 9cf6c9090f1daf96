"""A given number of flips: for comparisons in which everybody must make equally many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.faults.models import Fault
from host.faults.plan import EVERY_IMAGE, SITE_BITS, SITES, FaultPlan, extents
from host.faults.random_streams import IDS
from host.faults.spec import Spec
from host.program.program import Program


@dataclass(frozen=True)
class FlipCount(Fault):
    """Exactly so many bit flips an image, at distinct places drawn uniformly over the whole network.

    Parameters
    ----------
    count : int
        Flips in each image; at "weight", in the whole run.
    site : str
        One of `host.faults.plan.SITES`.

    Raises
    ------
    ValueError
        If a value is out of range; from `draw`, if the network has fewer places.
    """

    count: int
    site: str = "mac"

    def __post_init__(self) -> None:
        if not isinstance(self.count, (int, np.integer)):
            raise ValueError(f"the number of flips must be a whole number, not {self.count!r}")
        if self.count < 0:
            raise ValueError(f"the number of flips must be 0 or more, not {self.count}")
        if self.site not in SITES:
            raise ValueError(f"flips happen at {', '.join(SITES)}, not at {self.site!r}")

    @classmethod
    def words(cls, brief: Spec) -> str:
        return f"{brief['count']} flips of {brief['site']} in each image"

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """The site."""
        return (self.site,)

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}")
        outputs, steps = np.asarray(
            [extents(program, layer, self.site) for layer in range(len(program.layers))], np.int64
        ).T
        bits = SITE_BITS[self.site]
        ends = np.cumsum(outputs * steps * bits)
        if self.count > ends[-1]:
            raise ValueError(f"{self.count} flips do not fit the {ends[-1]} places at {self.site!r} of this network")
        where = range(EVERY_IMAGE, 0) if self.site == "weight" else range(first_image, first_image + images)
        place = np.concatenate([self._places(int(ends[-1]), image, seed) for image in where] or [np.zeros(0, np.int64)])
        layer = np.searchsorted(ends, place, side="right")
        output, rest = np.divmod(place - (ends - outputs * steps * bits)[layer], (steps * bits)[layer])
        step, bit = np.divmod(rest, bits)
        return FaultPlan.of(
            program.names, np.repeat(where, self.count), layer, SITES.index(self.site), output, step, bit
        )

    def _places(self, size: int, image: int, seed: int) -> npt.NDArray[np.int64]:
        words = np.random.SeedSequence([seed, IDS["count"], IDS[self.site], image + 1])
        stream = np.random.Generator(np.random.Philox(words))
        if self.count > size // 2:
            spared = distinct(size, size - self.count, stream)
            return np.setdiff1d(np.arange(size), spared, assume_unique=True)
        return distinct(size, self.count, stream)


def distinct(size: int, count: int, stream: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` different integers below `size`, ascending; each such set is as likely as any other.

    Draws as many as are missing until none is: no set is preferred, since renaming the integers changes nothing.
    """
    found = np.sort(stream.integers(size, size=count))
    while (twice := found[1:] == found[:-1]).any():
        found = np.append(found[:1], found[1:][~twice])
        found = np.sort(np.append(found, stream.integers(size, size=count - len(found))))
    return found
