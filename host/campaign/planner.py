"""Before a campaign: how large its space is, and how many faults a wanted precision needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from host.campaign.campaign import CampaignError
from host.campaign.settings import Settings
from host.campaign.trials import SingleFault, space_of
from host.stats import planned_clusters, planned_trials
from host.studies.report.document import Table

CORRELATIONS = (1.0, 0.5, 0.2, 0.05, 0.0)
"""Of two images under one fault."""
APART = (0.0,)
"""Of two images whose faults are drawn for each anew, or are those of every trial."""


@dataclass(frozen=True)
class Plan:
    """What a campaign would need.

    Attributes
    ----------
    half_width, share, confidence : float
        What was asked.
    images : int
        Of each trial.
    independent : int
        Independent inferences that give the wanted half-width.
    trials : dict of int
        Trials (faults), by the correlation of two images of a trial.
    parts : dict of int
        Places of each layer, or of each bank of a stuck bit; none unless each trial has a single fault.
    """

    half_width: float
    share: float
    confidence: float
    images: int
    independent: int
    trials: dict[float, int]
    parts: dict[str, int]

    @property
    def space(self) -> int:
        """Single faults there are."""
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "half_width": self.half_width,
            "share": self.share,
            "confidence": self.confidence,
            "images": self.images,
            "independent_inferences": self.independent,
            "trials_by_correlation": {str(rho): n for rho, n in self.trials.items()},
            "space": self.space,
            "parts": self.parts,
        }

    def table(self) -> Table:
        """Trials by correlation."""
        say = {1.0: "a fault does the same to every image", 0.0: "images know nothing of each other"}
        if not self.parts:
            say[0.0] = "every image meets faults of its own, or all trials the same"
        body = [[f"{rho:g}", f"{n:,}", f"{n * self.images:,}", say.get(rho, "")] for rho, n in self.trials.items()]
        return Table(["correlation", "trials", "inferences", ""], body)

    def lines(self) -> list[str]:
        """In words."""
        found = [
            f"For {100 * self.confidence:g} % intervals of +-{100 * self.half_width:g} % around "
            f"{100 * self.share:g} %, {self.images} images a trial."
        ]
        if not self.parts:
            return found
        largest = max(self.parts, key=lambda name: self.parts[name])
        found.append(
            f"The space has {self.space:,} faults; {100 * self.parts[largest] / self.space:.1f} % of them are in "
            f"{largest}, so are as many of the trials."
        )
        if self.trials[1.0] > self.space:
            found.append("There are not so many faults: a campaign that tries each once needs no interval for faults.")
        return found


def plan(settings: Settings, half_width: float, share: float, confidence: float, data_dir: str | None = None) -> Plan:
    """The plan of a campaign (`planned_clusters`).

    Images of a trial resemble each other where they share a fault that other trials do not have: a single fault, or a
    rate's flips in weights.
    """
    faults = settings.faults
    shared = isinstance(faults, SingleFault) or "weight" in faults.sites
    try:
        independent = planned_trials(half_width, share, confidence)
        trials = {
            rho: planned_clusters(half_width, settings.images, rho, share, confidence)
            for rho in (CORRELATIONS if shared else APART)
        }
    except ValueError as error:
        raise CampaignError(str(error)) from error
    parts = {}
    if isinstance(faults, SingleFault):
        calibrate, _, _ = settings.data(data_dir)
        twin = next(iter(settings.twins(calibrate).values()))
        parts = space_of(faults, twin.program, tuple(twin.fallback)).part_sizes()
    return Plan(half_width, share, confidence, settings.images, independent, trials, parts)
