"""Which layer each policy would protect, side by side, and what the network gains by each choice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from host.campaign.tables import write_csv, write_figure
from host.datasets.data import Labelled
from host.faults.models import Fault
from host.stats import Paired, Rate, paired
from host.studies.report import figure
from host.studies.report.document import Figure, Table
from host.training.protect import Choice, by_accuracy, by_error_distribution
from host.training.train import Evaluation, evaluate
from host.training.twin import Twin

POLICIES = ("error distribution", "error distribution, inherited", "accuracy")


@dataclass(frozen=True)
class Critical:
    """What policies chose, and what that is worth.

    Attributes
    ----------
    threshold : int
        T of the error distribution.
    choices : dict of Choice
        By policy.
    alone : Rate
        Accuracy under faults without protection.
    protected : dict of (Rate, Paired)
        By layer that some policy chose: accuracy with it protected, and the comparison with none, image by image.
    """

    threshold: int
    choices: dict[str, Choice]
    alone: Rate
    protected: dict[str, tuple[Rate, Paired]]

    def table(self) -> Table:
        """Scores by layer; the chosen marked."""
        layers = list(next(iter(self.choices.values())).scores)
        body = [[name, *(_cell(choice, name) for choice in self.choices.values())] for name in layers]
        t = self.threshold
        head = ["layer", f"|error| > {t}", f"|error| > {t}, inherited", "accuracy, it alone protected"]
        return Table(head, body)

    def lines(self) -> list[str]:
        """What each choice is worth, on other images than it was made with."""
        found = [f"no protection: {self.alone}"]
        for name, (rate, change) in self.protected.items():
            low, high = (100 * end for end in change.interval)
            by = ", ".join(policy for policy, choice in self.choices.items() if name in choice.names)
            found.append(
                f"{name} protected ({by}): {rate}, {100 * change.difference:+.2f} % [{low:+.2f}, {high:+.2f}] "
                f"(p {change.p_value:.2g})"
            )
        return found


def _cell(choice: Choice, name: str) -> str:
    return f"{100 * choice.scores[name]:.2f} %" + (" *" if name in choice.names else "")


def measure(
    twin: Twin, faults: Fault, probe: Labelled, test: Labelled, *, threshold: int = 5, seed: int = 0
) -> Critical:
    """Let every policy choose on `probe`, and measure the choices on `test`, under the same faults each."""
    images, labels = probe.batch(torch.arange(len(probe)))
    policies: dict[str, by_error_distribution | by_accuracy] = {
        POLICIES[0]: by_error_distribution(faults, images, threshold=threshold, seed=seed),
        POLICIES[1]: by_error_distribution(faults, images, threshold=threshold, inherited=True, seed=seed),
        POLICIES[2]: by_accuracy(faults, images, labels, seed=seed),
    }
    choices = {}
    for name, policy in policies.items():
        policy(twin)
        assert policy.choice is not None
        choices[name] = policy.choice
    before = twin.protected
    found: dict[str, Evaluation] = {}
    try:
        for name in ("", *dict.fromkeys(n for choice in choices.values() for n in choice.names)):
            twin.protect([name] if name else [])
            # Policies choose under faults of a purpose of their own: these are others, the same for all.
            found[name] = evaluate(twin, test, faults=faults, seed=seed)
    finally:
        twin.protect([name for name in before if name not in twin.fallback])
    alone = found.pop("")
    protected = {
        name: (Rate.of(evaluation.right), paired(alone.right, evaluation.right)) for name, evaluation in found.items()
    }
    return Critical(threshold, choices, Rate.of(alone.right), protected)


def write(folder: Path, found: Critical) -> list[Path]:
    """critical.csv, choices.csv and the figure; returns the files."""
    layers = list(next(iter(found.choices.values())).scores)
    rows = [
        [policy, found.threshold, name, choice.scores[name], int(name in choice.names)]
        for policy, choice in found.choices.items()
        for name in layers
    ]
    scores = write_csv(folder / "critical.csv", ["policy", "threshold", "layer", "score", "chosen"], rows)
    head = ["protected", "right", "images", "accuracy", "low", "high", "difference", "diff_low", "diff_high", "p"]
    alone = found.alone
    values: list[list[object]] = [["", alone.successes, alone.trials, alone.value, *alone.interval, 0.0, 0.0, 0.0, 1.0]]
    for name, (r, c) in found.protected.items():
        values.append([name, r.successes, r.trials, r.value, *r.interval, c.difference, *c.interval, c.p_value])
    worth = write_csv(folder / "choices.csv", head, values)
    return [scores, worth, *write_figure(folder, draw(found))]


def draw(found: Critical) -> Figure:
    """Each policy's scores by layer, its choice filled."""
    with figure.pyplot(mathematics=False) as plt:
        drawn, panels = plt.subplots(1, len(found.choices), figsize=(5 * len(found.choices), 4), layout="constrained")
        for axes, (policy, choice) in zip(panels, found.choices.items(), strict=True):
            names = list(choice.scores)
            shares = [100 * choice.scores[name] for name in names]
            colours = ["#d1495b" if name in choice.names else "#c9d1d9" for name in names]
            axes.bar(names, shares, color=colours)
            if policy == "accuracy":
                # The differences are small beside the whole.
                axes.set_ylim(max(0.0, min(shares) - 2), min(100.0, max(shares) + 2))
                axes.set_ylabel("accuracy with only this layer protected, %")
            else:
                axes.set_ylabel(f"outputs with |error| > {found.threshold}, %")
            axes.set_title(policy, loc="left", fontsize=11)
        return figure.render(drawn, "critical", "Scores by which policies choose the layer to protect")
