"""Stuck-at faults: a bit of a lane's register that keeps one value, whatever is captured (a permanent fault)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host.faults.conditions import Conditions, StuckBit
from host.faults.models import Fault
from host.faults.plan import FaultPlan
from host.faults.spec import Spec
from host.program.program import Program


@dataclass(frozen=True)
class StuckAt(Fault):
    """One bit of one lane is always 0 or always 1. Add several with `+`.

    The register takes what its adder gives (late bits included), then soft errors flip bits, then the stuck bit has its
    way; what follows computes with the result.

    Parameters
    ----------
    lane : int
        Which of the LANES; it computes the output channels `lane`, `lane + LANES`, ...
    bit : int
    value : int
        0 or 1.
    site : str
        "accumulator" (bits 0 to 31), or a bank of the adder tree: "tree_1_0" is the first adder of level 1, whose sums
        have 17 bits, those of level 2 18, and so on.

    Raises
    ------
    ValueError
        If a value is out of range; what the accelerator does not have is found by `draw` (ConditionError).
    """

    lane: int
    bit: int
    value: int
    site: str = "accumulator"

    def __post_init__(self) -> None:
        for name in ("lane", "bit", "value"):
            if not isinstance(getattr(self, name), (int, np.integer)):
                raise ValueError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if self.lane < 0:
            raise ValueError(f"lane must be 0 or more, not {self.lane}")
        if not 0 <= self.bit < 32:
            raise ValueError(f"bit must be from 0 to 31, not {self.bit}")
        if self.value not in (0, 1):
            raise ValueError(f"a bit is stuck at 0 or 1, not {self.value}")

    @classmethod
    def words(cls, brief: Spec) -> str:
        return f"bit {brief['bit']} of lane {brief['lane']}'s {brief['site']} stuck at {brief['value']}"

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """("stuck",)"""
        return self.conditions.sites

    @property
    def conditions(self) -> Conditions:
        """The stuck bit, for a plan."""
        return Conditions(stuck=(StuckBit(self.lane, self.site, self.bit, self.value),))

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        conditions = self.conditions
        conditions.check(program.config)
        return FaultPlan.of(program.names).under(conditions)
