"""What the reports of all studies say in the same words, and draw in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from host.stats import Rate
from host.studies.curves import LOOP, curves
from host.studies.report import figure
from host.studies.report.document import Bullets, Section, Table
from host.studies.results import WORDS, Row, levels, pooled, protection_table
from host.studies.workbench import Settings


def device_words(settings: Settings) -> str:
    """Which device computed, in a sentence."""
    s = settings
    if s.device == "simulation":
        return (
            f"Every forward pass, in evaluation and in retraining, was computed by the accelerator's RTL "
            f"({s.lanes} lanes x vec {s.vec}) under Verilator and cocotb, in {s.units} simulator process(es)."
        )
    return (
        f"Forward passes were computed by the `{s.device}` device, not by the RTL: bit-exact in results, but it "
        f"counts no cycles or bytes."
    )


def treatment_words(rows: Sequence[Row]) -> Bullets:
    """What the treatments in a table are."""
    there = {row.treatment for row in rows}
    return Bullets([f"{name}: {text}" for name, text in WORDS.items() if name in there], terms=True)


def protection_section(rows: Sequence[Row], level_name: str, threshold: int) -> list[Section]:
    """How the layer to protect was chosen; nothing where no policy chose."""
    table = protection_table(rows, level_name)
    if table is None:
        return []
    words = (
        f"Share of each layer's outputs that are more than {threshold} units off, compared with what the layer makes "
        "of the same input without errors; the layer with the largest share is protected."
    )
    return [Section("The protected layer", [words, table])]


def retraining_words(settings: Settings, under: str) -> str:
    """How networks were retrained, in a sentence; `under`: under which faults."""
    s = settings
    return (
        f"Each retraining saw {s.train_images:,} training images in batches of {s.batch} (SGD, learning rate {s.lr:g}) "
        f"{under}, from the pretrained network."
    )


def protection_words(settings: Settings, under: str = "") -> str:
    """Which layer was protected, in a sentence."""
    s = settings
    return (
        f"The protected layer is the one with the largest share of outputs more than {s.threshold} units off "
        f"(measured on {s.probe_images} training images{under}); it runs on the CPU in the same integers."
    )


def settings_section(settings: Settings, versions: dict[str, str]) -> Section:
    """Settings, and versions of the software."""
    return Section(
        "Settings and versions",
        [
            Table(["setting", "value"], [[key, _shown(value)] for key, value in asdict(settings).items()]),
            Table(["software", "version"], [[key, value] for key, value in versions.items()]),
        ],
        folded=True,
    )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(v if isinstance(v, str) else f"{v:g}" for v in value)
    return str(value)


def clean_line(axes: Any, clean: Rate, *, at_end: bool = False) -> None:
    """Where accuracy is without faults."""
    axes.axhline(100 * clean.value, color=figure.INK, linewidth=1, linestyle=(0, (6, 3)))
    axes.annotate(
        f"fault-free int8: {100 * clean.value:.1f} %",
        (1 if at_end else 0, 100 * clean.value),
        xycoords=("axes fraction", "data"),
        xytext=(-2 if at_end else 4, 4),
        textcoords="offset points",
        ha="right" if at_end else "left",
        color=figure.INK,
    )


def accuracy_curves(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy over the level: the mean of the training seeds with the interval of images, and each seed, thin."""
    at = levels(rows)
    for name, curve in curves(rows).items():
        ends = 100 * np.array([pooled(rows, name, level).interval for level in at])
        style = "-" if name in LOOP else "--"
        colour = figure.COLOURS[name]
        axes.plot(at, 100 * curve.mean((0, 2)), style, color=colour, label=name, marker="o", markersize=4)
        axes.fill_between(at, ends[:, 0], ends[:, 1], color=colour, alpha=0.2, linewidth=0)
        if len(curve) > 1:
            for one in curve:
                axes.plot(at, 100 * one.mean(1), color=colour, linewidth=0.5, alpha=0.6)
