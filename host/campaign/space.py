"""The spaces of single faults, numbered: every place and bit where one flip can happen, every bit that can be stuck."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from host.faults.conditions import Conditions, StuckBit
from host.faults.plan import EVERY_IMAGE, SITE_BITS, SITES, FaultPlan, extents
from host.program.program import Program
from hw.config import Config
from hw.delays import bank_names, register_bits
from hw.errors import RedlineError

STUCK = "stuck"
"""Beside `SITES`: a bit of a lane's register that is stuck, which is no place of a layer."""


class SpaceError(RedlineError, ValueError):
    """A fault space is empty, or names what the network does not have."""


@dataclass(frozen=True)
class Place:
    """One flip: the columns of a `FaultPlan` but the image."""

    layer: str
    site: str
    output: int
    step: int
    bit: int


@dataclass(frozen=True)
class _Part:
    """A layer's places at one site."""

    layer: int
    site: str
    outputs: int
    steps: int
    bits: int

    @property
    def size(self) -> int:
        return self.outputs * self.steps * self.bits


class FaultSpace:
    """All single flips in some layers at some sites; each as likely as any other.

    Layers are weighted by their places, never drawn first: a layer with a thousandth of the places gets a thousandth
    of the faults. A network's protected layers belong to the space, so that protection can be compared on one plan:
    their faults do not happen. Layers of `excluded` do not belong to it.

    Parameters
    ----------
    program : Program
    sites : names of `host.faults.plan.SITES`
    layers : names, or none for all
    excluded : names
        Layers that the accelerator cannot run.

    Attributes
    ----------
    size : int

    Raises
    ------
    SpaceError
        If a layer or site is unknown, or there is no place at all.
    """

    def __init__(
        self, program: Program, sites: Iterable[str], layers: Iterable[str] = (), excluded: Iterable[str] = ()
    ) -> None:
        sites, layers, excluded = tuple(sites), tuple(layers), set(excluded)
        for site in sites:
            if site not in SITES:
                raise SpaceError(f"unknown fault site {site!r}; there are {', '.join(SITES)}")
        for name in layers:
            program.index(name)
        self.names = program.names
        self._parts: list[_Part] = []
        self._ends: list[int] = []
        self.size = 0
        for site in SITES:
            for at, layer in enumerate(program.layers):
                if site not in sites or layer.name in excluded or (layers and layer.name not in layers):
                    continue
                part = _Part(at, site, *extents(program, at, site), SITE_BITS[site])
                if part.size:
                    self._parts.append(part)
                    self.size += part.size
                    self._ends.append(self.size)
        if not self.size:
            raise SpaceError(f"layers {', '.join(layers or program.names)} have no places of {', '.join(sites)} to hit")

    def place(self, index: int) -> Place:
        """The flip of a number, 0 to size - 1."""
        if not 0 <= index < self.size:
            raise IndexError(f"place {index} of {self.size}")
        at = bisect_right(self._ends, index)
        part = self._parts[at]
        rest, bit = divmod(index - (self._ends[at] - part.size), part.bits)
        output, step = divmod(rest, part.steps)
        return Place(self.names[part.layer], part.site, output, step, bit)

    def part_sizes(self) -> dict[str, int]:
        """Places of each layer that has any."""
        sizes: dict[str, int] = {}
        for part in self._parts:
            sizes[self.names[part.layer]] = sizes.get(self.names[part.layer], 0) + part.size
        return sizes


class StuckSpace:
    """All stuck bits: every bit of every register bank of every lane, at 0 and at 1; each as likely as any other.

    Attributes
    ----------
    size : int
    """

    def __init__(self, config: Config) -> None:
        self._banks = tuple((name, register_bits(name)) for name in bank_names(config.vec))
        self._lanes = config.lanes
        self.size = 2 * config.lanes * sum(bits for _, bits in self._banks)

    def place(self, index: int) -> StuckBit:
        """The stuck bit of a number, 0 to size - 1."""
        if not 0 <= index < self.size:
            raise IndexError(f"place {index} of {self.size}")
        rest, value = divmod(index, 2)
        bit, lane = divmod(rest, self._lanes)
        for bank, bits in self._banks:
            if bit < bits:
                return StuckBit(lane, bank, bit, value)
            bit -= bits
        raise AssertionError("the banks' bits are as many as were counted")

    def part_sizes(self) -> dict[str, int]:
        """Places of each bank, in all lanes."""
        return {bank: 2 * self._lanes * bits for bank, bits in self._banks}


def plan_of(place: Place | StuckBit, names: tuple[str, ...], images: int) -> FaultPlan:
    """The plan in which each of `images` images meets the flip, or the stuck bit."""
    if isinstance(place, StuckBit):
        return FaultPlan.of(names).under(Conditions(stuck=(place,)))
    image = [EVERY_IMAGE] if place.site == "weight" else range(images)
    return FaultPlan.of(
        names, list(image), names.index(place.layer), SITES.index(place.site), place.output, place.step, place.bit
    )
