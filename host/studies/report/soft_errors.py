"""What the study of soft errors shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from host.stats import Rate
from host.studies.curves import LOOP
from host.studies.report import figure
from host.studies.report.common import (
    accuracy_curves,
    clean_line,
    device_words,
    protection_section,
    protection_words,
    retraining_words,
    settings_section,
    treatment_words,
)
from host.studies.report.document import Bullets, Figure, Section, Table
from host.studies.results import Row, WriteBack, levels, means_table, pooled, results_table, seed_column, shown_level

if TYPE_CHECKING:
    from host.studies.soft_errors import Summary

LEVELS = {"mac": "faults per MAC", "bit": "bit error rate"}
"""What the rate is called, by what it is per."""
BARS = 4
"""Rates up to which accuracy is shown by bars, if there is one training seed; else by curves."""


def sections(summary: Summary) -> list[Section]:
    """The report's parts; the first has no heading of its own."""
    level = LEVELS[summary.settings.per]

    def faults_per_image(row: Row) -> str:
        return "" if row.level is None else f"{row.evaluation.report.faults_applied / row.accuracy.trials:.1f}"

    columns = [("faults / image", faults_per_image)]
    seeds = len(summary.settings.seeds)
    if seeds > 1:
        columns.insert(0, ("training seed", seed_column))
    return [
        Section("", [Bullets(headline(summary)), plot(summary)]),
        *([Section("Means of the training seeds", [means_table(summary.rows, level)])] if seeds > 1 else []),
        Section("Results", [results_table(summary.rows, level, *columns), treatment_words(summary.rows)]),
        Section("The first test images, and what each network takes them for", [summary.samples]),
        *protection_section(summary.rows, level, summary.settings.threshold),
        Section("Write-back", [writeback_words(summary.writeback), writeback_table(summary.writeback)]),
        Section("How", [Bullets(how(summary))]),
        settings_section(summary.settings, summary.versions),
    ]


def headline(summary: Summary) -> list[str]:
    """The result in sentences, one a fault rate."""
    clean = next(row for row in summary.rows if row.treatment == "int8, fault-free").accuracy
    seeds = len(summary.settings.seeds)
    mean = "" if seeds == 1 else f" (means of {seeds} training seeds)"
    said = []
    for rate in levels(summary.rows):
        original, twa, both = (pooled(summary.rows, name, rate).value for name in LOOP)
        lost = clean.value - original
        regained = (both - original) / lost if lost > 0 else 0.0
        gain = (
            f"{100 * regained:.0f} % of the loss is recovered" if regained > 0 else "nothing of the loss is recovered"
        )
        where = f"At {rate:g} faults per MAC" if summary.settings.per == "mac" else f"At a bit error rate of {rate:g}"
        said.append(
            f"{where}, accuracy falls from {100 * clean.value:.1f} % to {100 * original:.1f} %; "
            f"retraining with the accelerator (TWA) brings it to {100 * twa:.1f} %, and with the critical layer "
            f"protected (TWA+CLP) to {100 * both:.1f} %: {gain}{mean}."
        )
    return said


def how(summary: Summary) -> list[str]:
    """What was done, in sentences."""
    s = summary.settings
    if s.per == "mac":
        what = (
            "one bit of a lane's 32-bit accumulator after an accumulation step, drawn uniformly over all steps, outputs"
        )
    else:
        sites = " and ".join(f"{site}s" for site in s.fault(s.rates[0]).sites)
        what = f"single bits of the stored {sites}, drawn uniformly over all of them"
    seeds = (
        "A curve of retrained networks is the mean of its training seeds, which are drawn thin; its band is the "
        "interval of the images, not that of the seeds."
    )
    return [
        device_words(s),
        f"Faults flip {what}, images and bits; all networks at one rate meet the same faults.",
        retraining_words(s, "under faults other than those of the test"),
        protection_words(s),
        "Intervals are Wilson's at 95 %; changes are paired image by image (Newcombe's interval, exact McNemar test).",
        *([seeds] if len(s.seeds) > 1 else []),
    ]


def writeback_words(wb: WriteBack) -> str:
    """What the write-back table shows."""
    same = (
        "Both gave the same outputs, byte for byte."
        if wb.equal
        else "THE OUTPUTS DIFFER: the accelerator has a defect."
    )
    if not wb.off.cycles:
        return f"{same} This device counts no cycles; use the simulation for those."
    cycles = wb.on.cycles / wb.off.cycles
    return (
        f"{same} Writing every layer's output back takes {cycles:.2f}x the cycles of inference and "
        f"{wb.on.bytes_written / max(1, wb.off.bytes_written):.0f}x the written bytes. Figures are per image."
    )


def writeback_table(wb: WriteBack) -> Table:
    """Cycles and bytes an image."""
    body = []
    for name, counted in (("off (inference)", wb.off), ("on (training)", wb.on)):
        per = [counted.cycles, counted.mac_cycles, counted.stall_cycles, counted.bytes_read, counted.bytes_written]
        busy = f"{100 * counted.mac_cycles / counted.cycles:.1f} %" if counted.cycles else ""
        body.append([name, *(f"{value / wb.images:,.1f}" for value in per), busy])
    head = ["write-back", "cycles", "MAC cycles", "stalled", "bytes read", "bytes written", "MAC busy"]
    return Table(head, body)


def plot(summary: Summary) -> Figure:
    """Accuracy against fault rate, and errors by layer."""
    s = summary.settings
    faulty = [row for row in summary.rows if row.level is not None]
    clean = next(row for row in summary.rows if row.treatment == "int8, fault-free").accuracy
    with figure.pyplot() as plt:
        picture, (left, right) = plt.subplots(
            1, 2, figsize=(12, 5), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
        )
        if len(s.rates) <= BARS and len(s.seeds) == 1:
            _bars(left, right, faulty, clean, s.threshold)
        else:
            _curves(left, right, faulty, clean, s.threshold)
        rate = (
            "soft errors per MAC (bit flips in the accumulator, per accumulation step)"
            if s.per == "mac"
            else f"bit error rate ({', '.join(s.fault(s.rates[0]).sites)})"
        )
        left.set_xlabel(rate)
        left.set_ylabel(f"accuracy on {clean.trials:,} test images, %")
        left.set_ylim(0, 108)
        left.set_yticks(range(0, 101, 20))
        figure.legend(left, 4)
        figure.title(left, "Damage and recovery")
        figure.legend(right, 5)
        figure.title(right, "Which layer makes the errors")
        return figure.render(picture, "soft-errors", "Accuracy against fault rate, and errors by layer")


def _bars(left: Any, right: Any, faulty: list[Row], clean: Rate, threshold: int) -> None:
    """A bar a treatment and rate; a bar a layer and rate."""
    rates = levels(faulty)
    clean_line(left, clean, at_end=True)
    treatments = [name for name in figure.COLOURS if any(row.treatment == name for row in faulty)]
    width = 0.8 / len(treatments)
    for at, name in enumerate(treatments):
        rows = sorted((row for row in faulty if row.treatment == name), key=lambda row: row.level or 0)
        x = np.arange(len(rates)) + (at - (len(treatments) - 1) / 2) * width
        y = np.array([100 * row.accuracy.value for row in rows])
        ends = np.array([row.accuracy.interval for row in rows]) * 100
        bars = left.bar(x, y, width * 0.92, color=figure.COLOURS[name], label=name)
        left.errorbar(x, y, [y - ends[:, 0], ends[:, 1] - y], fmt="none", ecolor=figure.INK, capsize=2.5, linewidth=1)
        left.bar_label(bars, [f"{value:.0f}" for value in y], label_type="center", color="white", fontsize=10)
    left.set_xticks(range(len(rates)), [shown_level(rate) for rate in rates])

    chosen = [(row.level, row.choice) for row in faulty if row.choice is not None]
    layers = list(chosen[0][1]["scores"])
    shades = ["#f3b7be", "#d1495b", "#7d1f2d", "#3b0d14"]
    for at, (rate, choice) in enumerate(chosen):
        height = 0.8 / len(chosen)
        y = np.arange(len(layers)) + (at - (len(chosen) - 1) / 2) * height
        shares = [100 * choice["scores"][name] for name in layers]
        bars = right.barh(y, shares, height * 0.9, color=shades[at % len(shades)], label=shown_level(rate))
        labels = ["protected" if name in choice["names"] else "" for name in layers]
        right.bar_label(bars, labels, padding=3, fontsize=9)
    right.set_yticks(range(len(layers)), layers)
    right.invert_yaxis()
    right.margins(x=0.2)
    right.set_xlabel(f"outputs off by more than {threshold} units, %")


def _curves(left: Any, right: Any, faulty: list[Row], clean: Rate, threshold: int) -> None:
    """A curve a treatment; a curve a layer, its marks filled where the layer is protected."""
    clean_line(left, clean)
    accuracy_curves(left, faulty)
    left.set_xscale("log")
    chosen = [(row.level, row.choice) for row in faulty if row.choice is not None]
    for name in chosen[0][1]["scores"]:
        # None on a logarithmic scale: a gap.
        shares = [100 * choice["scores"][name] or np.nan for _, choice in chosen]
        (line,) = right.plot(
            [rate for rate, _ in chosen], shares, marker="o", markersize=5, fillstyle="none", label=name
        )
        here = [(rate, 100 * choice["scores"][name]) for rate, choice in chosen if name in choice["names"]]
        right.plot(*zip(*here, strict=True) if here else ([], []), "o", markersize=5, color=line.get_color())
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("the same rates (filled: protected)")
    right.set_ylabel(f"outputs off by more than {threshold} units, %")
