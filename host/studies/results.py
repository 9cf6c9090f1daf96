"""What studies measure: treatments of a network, image by image, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from host.devices.device import LaunchReport
from host.stats import Paired, Rate, paired
from host.store.csv_text import csv_text
from host.studies.report.document import Table
from host.training.train import Evaluation

WORDS = {
    "float": "the pretrained network in float, without an accelerator",
    "int8, fault-free": "the same network in the accelerator's integers, no faults",
    "original": "the pretrained network on the faulty accelerator",
    "CLP": "the pretrained network on the faulty accelerator, its critical layer protected (on the CPU)",
    "TWA": "retrained with the faulty accelerator in its forward pass",
    "TWA+CLP": "retrained with the faulty accelerator, its critical layer protected",
    "retrained fault-free": "retrained as TWA, but the accelerator made no errors meanwhile",
    "noise": "retrained in float with Gaussian noise on every layer's outputs",
    "dropout": "retrained in float with dropout on every layer's outputs",
}
"""The treatments, in the literature's words."""


@dataclass(frozen=True)
class Row:
    """One treatment at one level of the faults (None: no faults).

    Attributes
    ----------
    level : float or None
        What the study varies: a rate, or a clock in MHz.
    treatment : str
        A key of WORDS.
    protected : tuple of str
        Layers on the CPU.
    accuracy : Rate
    against_name, against
        The treatment it is compared with, image by image.
    evaluation : Evaluation
    choice : dict or None
        What the protection policy measured.
    seed : int or None
        Of the retraining.
    """

    level: float | None
    treatment: str
    protected: tuple[str, ...]
    accuracy: Rate
    against_name: str
    against: Paired | None
    evaluation: Evaluation
    choice: dict[str, Any] | None = None
    seed: int | None = None

    @classmethod
    def of(
        cls,
        level: float | None,
        treatment: str,
        evaluation: Evaluation,
        *,
        against: Evaluation | None = None,
        against_name: str = "float",
        protected: tuple[str, ...] = (),
        choice: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Row:
        """A row; `against` is what it is compared with, image by image."""
        comparison = None if against is None else paired(against.right, evaluation.right)
        name = "" if against is None else against_name
        accuracy = Rate.of(evaluation.right)
        return cls(level, treatment, protected, accuracy, name, comparison, evaluation, choice, seed)

    @property
    def name(self) -> str:
        """The treatment, and what it protects."""
        return self.treatment + (f" ({', '.join(self.protected)})" if self.protected else "")


@dataclass(frozen=True)
class WriteBack:
    """The same images with and without writing every layer's output back to memory."""

    images: int
    off: LaunchReport
    on: LaunchReport
    equal: bool


def levels(rows: Sequence[Row]) -> list[float]:
    """The levels at which there are faults, ascending."""
    return sorted({row.level for row in rows if row.level is not None})


def shown_level(level: float | None) -> str:
    """A level as tables show it."""
    return "none" if level is None else f"{level:g}"


def percent(rate: Rate) -> str:
    """A rate and its interval for a terminal."""
    low, high = rate.interval
    return f"{100 * rate.value:.2f} % ({100 * low:.1f}-{100 * high:.1f})"


def p_value(p: float) -> str:
    """A p-value as people write it."""
    return "< 1e-12" if p < 1e-12 else f"{p:.2g}"


CSV_COLUMNS = (
    *("treatment", "protected", "training_seed", "images", "right", "accuracy", "wilson95_low", "wilson95_high"),
    *("compared_with", "gained", "lost", "difference", "difference95_low", "difference95_high", "mcnemar_p"),
    *("faults_applied", "cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written"),
)


def table_csv(rows: Sequence[Row], level_name: str) -> str:
    """The rows as CSV; the first column, `level_name`, is empty without faults."""
    lines: list[list[object]] = []
    for row in rows:
        low, high = row.accuracy.interval
        pair = row.against
        compared: list[object] = [""] * 7
        if pair is not None:
            figures = (pair.difference, *pair.interval)
            compared = [row.against_name, pair.gained, pair.lost]
            compared += [*(f"{figure:.6f}" for figure in figures), f"{pair.p_value:.3g}"]
        lines.append(
            [
                "" if row.level is None else f"{row.level:g}",
                row.treatment,
                " ".join(row.protected),
                "" if row.seed is None else row.seed,
                row.accuracy.trials,
                row.accuracy.successes,
                *(f"{figure:.6f}" for figure in (row.accuracy.value, low, high)),
                *compared,
                *(asdict(row.evaluation.report)[name] for name in CSV_COLUMNS[-6:]),
            ]
        )
    return csv_text([level_name, *CSV_COLUMNS], lines)


def pooled(rows: Sequence[Row], treatment: str, level: float) -> Rate:
    """Accuracy over all training seeds; the interval is that of images, seeds taken as one."""
    right = np.stack([r.evaluation.right for r in rows if r.treatment == treatment and r.level == level])
    return Rate(round(float(right.mean()) * right.shape[1]), right.shape[1])


def seed_column(row: Row) -> str:
    """A row's training seed, as tables show it."""
    return "" if row.seed is None else str(row.seed)


def results_table(rows: Sequence[Row], level_name: str, *more: tuple[str, Callable[[Row], str]]) -> Table:
    """Accuracy with its interval, the paired comparison, and a study's own last columns."""
    body = []
    for row in rows:
        low, high = row.accuracy.interval
        pair = row.against
        compared = ["", "", ""]
        if pair is not None:
            ends = f"[{100 * pair.interval[0]:+.1f}, {100 * pair.interval[1]:+.1f}]"
            compared = [
                f"{100 * pair.difference:+.2f} {ends} vs {row.against_name}",
                f"{pair.gained} / {pair.lost}",
                p_value(pair.p_value),
            ]
        body.append(
            [
                shown_level(row.level),
                row.name,
                f"{100 * row.accuracy.value:.2f} %",
                f"{100 * low:.2f} to {100 * high:.2f} %",
                *compared,
                *(of(row) for _, of in more),
            ]
        )
    head = [level_name, "network", "accuracy", "95 % interval", "change, points [95 %]", "gained / lost", "p"]
    return Table([*head, *(name for name, _ in more)], body, group=0)


def short_table(rows: Sequence[Row], level_name: str) -> Table:
    """The results for a terminal."""
    body = []
    for row in rows:
        change = "" if row.against is None else f"{100 * row.against.difference:+.2f} vs {row.against_name}"
        p = "" if row.against is None else p_value(row.against.p_value)
        name = row.name if row.seed is None else f"{row.name}, seed {row.seed}"
        body.append([shown_level(row.level), name, percent(row.accuracy), change, p])
    return Table([level_name, "network", "accuracy (95 %)", "change, points", "p"], body, group=0)


def means_table(rows: Sequence[Row], level_name: str) -> Table:
    """A line a level, a column a treatment: the mean over training seeds with its interval of images, and each seed."""
    treatments = [name for name in WORDS if any(row.treatment == name and row.level is not None for row in rows)]
    body = []
    for level in levels(rows):
        line = [shown_level(level)]
        for name in treatments:
            here = [row for row in rows if (row.treatment, row.level) == (name, level)]
            each = ", ".join(f"{100 * row.accuracy.value:.2f}" for row in here)
            line.append(percent(pooled(rows, name, level)) + (f": {each}" if len(here) > 1 else ""))
        body.append(line)
    return Table([level_name, *treatments], body)


def protection_table(rows: Sequence[Row], level_name: str) -> Table | None:
    """Share of badly wrong outputs of every layer, and the layer chosen, at each level where a policy chose."""
    chosen = [(row.level, row.choice) for row in rows if row.choice is not None]
    if not chosen:
        return None
    layers = list(chosen[0][1]["scores"])
    body = [
        [
            shown_level(level),
            *(f"{100 * choice['scores'][name]:.2f} %" for name in layers),
            ", ".join(choice["names"]),
        ]
        for level, choice in chosen
    ]
    return Table([level_name, *layers, "protected"], body)
