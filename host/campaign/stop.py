"""When a campaign has seen enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from host.campaign.store import OUTCOMES, Counted
from host.stats import Clustered
from hw.errors import RedlineError

FIRST_LOOK = 100
"""Trials before the first look at an interval: with fewer, the variance between faults is not known."""
LOOK = 50
"""Trials from one look to the next."""


class RuleError(RedlineError, ValueError):
    """A stop rule makes no sense."""


@dataclass(frozen=True)
class HalfWidth:
    """Until the interval of an outcome is narrow enough, in every arm.

    Looked at after `FIRST_LOOK` trials, then every `LOOK`, always on the trials from 0 without a gap: where it stops
    does not depend on processes, interruptions or time. (A fixed-width sequential interval, Chow and Robbins 1965: it
    keeps its coverage as the width goes to zero; the tests measure it for the widths of practice.)

    Parameters
    ----------
    half_width : float
        Half the interval's length, 0 to 0.5 (excluded).
    of : str
        The outcome: "sdc1", "sdc5", "masked", "benign", "top1" or "top5".
    confidence : float
    """

    half_width: float
    of: str = "sdc1"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 0.5:
            raise RuleError(f"a half-width must be more than 0 and less than 0.5, not {self.half_width}")
        if self.of not in OUTCOMES:
            raise RuleError(f"no outcome {self.of!r}; there are {', '.join(OUTCOMES)}")

    def met(self, counted: Iterable[Counted], trials: int) -> bool:
        """Whether the first `trials` trials are enough, given each arm's counts."""
        for arm in counted:
            part = arm.first(trials)
            if Clustered.of(part.successes, part.sizes, self.confidence).half_width > self.half_width:
                return False
        return True


@dataclass(frozen=True)
class Trials:
    """Until so many trials are there."""

    trials: int

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise RuleError(f"a campaign needs at least one trial, not {self.trials}")


@dataclass(frozen=True)
class Minutes:
    """Until this run has taken so long. Where it stops depends on the machine; it can be taken up again."""

    minutes: float

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise RuleError(f"a time must be more than 0 minutes, not {self.minutes}")


Rule = HalfWidth | Trials | Minutes


def looks(after: int, most: int) -> range:
    """Numbers of trials at which rules look: those from `after` up to `most`."""
    first = max(FIRST_LOOK, -(-after // LOOK) * LOOK)
    return range(first, most + 1, LOOK)
