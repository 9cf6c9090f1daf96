"""What a campaign found: every share with its interval, arms compared on the same faults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.campaign.campaign import STORE, CampaignError
from host.campaign.masking import STAGES
from host.campaign.store import Counted, Store
from host.campaign.tables import write_csv
from host.campaign.trials import words
from host.stats import Clustered, Difference, difference
from host.studies.report import document, figure
from host.studies.report.document import Bullets, Document, Figure, Section, Table

RATES = ("masked", "benign", "sdc1", "sdc5", "top1", "top5", "clean_top1", "clean_top5")
NAMES = {
    "masked": "masked",
    "benign": "benign",
    "sdc1": "SDC-1",
    "sdc5": "SDC-5",
    "top1": "top-1",
    "top5": "top-5",
    "clean_top1": "top-1, fault-free",
    "clean_top5": "top-5, fault-free",
}
COMPARED = ("sdc1", "sdc5", "masked", "top1")
WORDS = (
    "masked: every output of the network is what it is without the fault",
    "benign: outputs differ, the top class does not",
    "SDC-1: the top class is not the fault-free one (Li et al. 2017)",
    "SDC-5: the top class is not among the fault-free top five (Li et al. 2017)",
    "interval: 95 %, Wilson's with the effective number of images: images under one fault resemble each other "
    "(design effect)",
)


@dataclass(frozen=True)
class Comparison:
    """An arm against the first, under the same faults on the same images."""

    arm: str
    outcome: str
    found: Difference


@dataclass(frozen=True)
class Summary:
    """What a campaign found.

    Attributes
    ----------
    fingerprint : dict
    trials : int
        Those from 0 without a gap; others that are there are left out, since which they are depends on timing.
    rates : dict of dict of Clustered
        By arm and outcome.
    stages : dict of dict of Clustered
        By arm: share of all images masked at each stage.
    comparisons : list of Comparison
    """

    fingerprint: dict[str, Any]
    trials: int
    rates: dict[str, dict[str, Clustered]]
    stages: dict[str, dict[str, Clustered]]
    comparisons: list[Comparison]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trials": self.trials,
            "fingerprint": self.fingerprint,
            "rates": {arm: {name: _plain(r) for name, r in rates.items()} for arm, rates in self.rates.items()},
            "masked_at": {arm: {name: _plain(r) for name, r in found.items()} for arm, found in self.stages.items()},
            "differences": [
                {
                    "arm": c.arm,
                    "against": next(iter(self.rates)),
                    "outcome": c.outcome,
                    "difference": c.found.value,
                    "interval": list(c.found.interval),
                    "p_value": c.found.p_value,
                }
                for c in self.comparisons
            ],
        }


def _plain(rate: Clustered) -> dict[str, Any]:
    return {
        "share": rate.value,
        "interval": list(rate.interval),
        "successes": rate.successes,
        "images": rate.trials,
        "trials": rate.clusters,
        "design_effect": rate.design_effect,
    }


def summarise(folder: Path) -> Summary:
    """Count what a campaign has so far.

    Raises
    ------
    StoreError
        If there is no campaign, or its file is damaged.
    CampaignError
        If it has no trials yet.
    """
    with Store(folder / STORE) as store:
        trials = store.complete()
        if not trials:
            raise CampaignError(f"{folder}: no trials yet; 'redline campaign run' runs them")
        counts = {arm: {name: store.count(name, arm).first(trials) for name in RATES} for arm in store.arms}
        stages = {arm: stage_shares(store, arm, trials) for arm in store.arms}
        fingerprint = store.fingerprint
    rates = {arm: {name: rate(c) for name, c in found.items()} for arm, found in counts.items()}
    first, *others = counts
    comparisons = [
        Comparison(arm, name, difference(counts[first][name].successes, c.successes, c.sizes))
        for arm in others
        for name, c in counts[arm].items()
        if name in COMPARED
    ]
    return Summary(fingerprint, trials, rates, stages, comparisons)


def rate(counted: Counted) -> Clustered:
    """A share with its interval, from successes by trial."""
    return Clustered.of(counted.successes, counted.sizes)


def stage_shares(store: Store, arm: str, trials: int) -> dict[str, Clustered]:
    """Share of all images that were masked at each stage."""
    sizes = store.count("masked", arm).first(trials).sizes
    found = {}
    for stage in STAGES:
        hits = np.zeros(trials, np.int64)
        for number, count in store.query(
            "SELECT number, COUNT(*) FROM outcome WHERE arm = ? AND stage = ? AND number < ? GROUP BY number",
            (arm, stage, trials),
        ):
            hits[number] = count
        if hits.any():
            found[stage] = Clustered.of(hits, sizes)
    return found


# -- as people read it


def about(summary: Summary) -> str:
    """What was run, in sentences."""
    made = summary.fingerprint
    return (
        f"{summary.trials:,} trials of {made['images']} images on the {made['device']['name']} device. "
        f"{words(made['faults'])}"
    )


def tables(summary: Summary) -> list[tuple[str, Table]]:
    """Titles and tables."""
    head = ["arm", "outcome", "share", "images", "trials", "design effect"]
    body = [
        [arm, NAMES[name], str(r), f"{r.trials:,}", f"{r.clusters:,}", f"{r.design_effect:.1f}"]
        for arm, rates in summary.rates.items()
        for name, r in rates.items()
    ]
    found = [("Outcomes", Table(head, body, group=0))]
    rows = [[arm, name, str(r)] for arm, stages in summary.stages.items() for name, r in stages.items()]
    if rows:
        found.append(("Where faults were masked", Table(["arm", "stage", "share of all images"], rows, group=0)))
    if summary.comparisons:
        first = next(iter(summary.rates))
        rows = []
        for c in summary.comparisons:
            low, high = (100 * end for end in c.found.interval)
            change = f"{100 * c.found.value:+.2f} % [{low:+.2f}, {high:+.2f}]"
            rows.append([c.arm, NAMES[c.outcome], change, f"{c.found.p_value:.2g}"])
        found.append((f"Against {first}, same faults", Table(["arm", "outcome", "difference", "p"], rows, group=0)))
    return found


def write(folder: Path, summary: Summary) -> None:
    """report.html, report.md, outcomes.csv and the figure."""
    sections = [
        Section("", [about(summary)]),
        *(Section(title, [table]) for title, table in tables(summary)),
        Section("", [_figure(summary), Bullets(WORDS, terms=True)]),
    ]
    document.write(folder, Document(f"Fault campaign {folder.name}", sections))
    write_csv(
        folder / "outcomes.csv",
        ["arm", "outcome", "share", "low", "high", "successes", "images", "trials", "design_effect"],
        [
            [arm, name, r.value, *r.interval, r.successes, r.trials, r.clusters, r.design_effect]
            for arm, rates in summary.rates.items()
            for name, r in [*rates.items(), *((f"masked:{s}", x) for s, x in summary.stages[arm].items())]
        ],
    )


def _figure(summary: Summary) -> Figure:
    shades = {"masked": "#c9d1d9", "benign": "#edae49", "sdc1": "#d1495b"}
    with figure.pyplot(mathematics=False) as plt:
        drawn, axes = plt.subplots(figsize=(9, 1.6 + 0.6 * len(summary.rates)), layout="constrained")
        for at, rates in enumerate(summary.rates.values()):
            left = 0.0
            for name, colour in shades.items():
                share = 100 * rates[name].value
                label = NAMES[name] if at == 0 else None
                axes.barh(at, share, left=left, color=colour, label=label, height=0.6)
                left += share
            low, high = (100 * end for end in rates["sdc1"].interval)
            share = 100 * rates["sdc1"].value
            # From the right: where SDC-1 begins.
            axes.errorbar(
                100 - share, at, xerr=[[high - share], [share - low]], color=figure.INK, capsize=3, fmt="none"
            )
        axes.set_yticks(range(len(summary.rates)), list(summary.rates))
        axes.set_ylim(len(summary.rates) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of inferences, %; 95 % interval of SDC-1")
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        return figure.render(drawn, "outcomes", "Shares of masked, benign and wrong inferences, by arm")
