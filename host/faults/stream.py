"""A fault plan that is drawn where it is needed: of 1e8 flips only those of the batch at hand exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from host.faults.plan import FaultPlan, PlanError

if TYPE_CHECKING:
    from host.faults.conditions import Conditions
    from host.faults.models import Fault
    from host.program.program import Program


@dataclass(frozen=True)
class PlanStream:
    """A run's faults by image range, each range drawn when asked for; `Fault.stream` makes one.

    `Runtime.forward` takes it in place of a `FaultPlan`. However the images are cut into ranges, each image meets the
    flips that it has in `fault.draw(program, 0, images, seed)`, and weights those that they have there.

    Attributes
    ----------
    fault : Fault
    program : Program
        The network whose places are hit; only its structure matters.
    seed : int
    """

    fault: Fault
    program: Program
    seed: int

    def images(self, first: int, count: int) -> FaultPlan:
        """The flips that concern images `first` to `first + count - 1`, and those in weights."""
        return self.fault.draw(self.program, first, count, self.seed)

    @property
    def conditions(self) -> Conditions | None:
        """What holds throughout the run: those of the fault."""
        return self.fault.conditions

    def batches(self, images: int, batch: int) -> Iterator[tuple[int, FaultPlan]]:
        """First image and flips of consecutive batches of at most `batch` images."""
        for first in range(0, images, batch):
            yield first, self.images(first, min(batch, images - first))

    def check(self, program: Program) -> None:
        """Raise `PlanError` unless the program has those layers, `ConditionError` unless it can meet the conditions."""
        if self.conditions is not None:
            self.conditions.check(program.config)
        if program.names != self.program.names:
            raise PlanError(
                f"faults are drawn for layers {', '.join(self.program.names)}; "
                f"this network has {', '.join(program.names)}"
            )
