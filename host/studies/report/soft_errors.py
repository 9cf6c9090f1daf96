"""What the study of soft errors shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from host.studies.report import figure
from host.studies.report.common import device_words, settings_table, versions_table
from host.studies.report.document import Bullets, Figure, Section, Table
from host.studies.results import WORDS, Row, WriteBack, levels, protection_table, results_table, shown_level

if TYPE_CHECKING:
    from host.studies.soft_errors import Summary

LEVEL = "faults per MAC"


def sections(summary: Summary) -> list[Section]:
    """The report's parts; the first has no heading of its own."""
    treatments = {row.treatment for row in summary.rows}
    words = Bullets([f"{name}: {text}" for name, text in WORDS.items() if name in treatments], terms=True)

    def faults_per_image(row: Row) -> str:
        return "" if row.level is None else f"{row.evaluation.report.faults_applied / row.accuracy.trials:.1f}"

    parts = [
        Section("", [Bullets(headline(summary)), plot(summary)]),
        Section("Results", [results_table(summary.rows, LEVEL, ("faults / image", faults_per_image)), words]),
        Section("The first test images, and what each network takes them for", [summary.samples]),
    ]
    protection = protection_table(summary.rows, LEVEL)
    if protection is not None:
        parts.append(Section("The protected layer", [_protection_words(summary), protection]))
    return [
        *parts,
        Section("Write-back", [writeback_words(summary.writeback), writeback_table(summary.writeback)]),
        Section("How", [Bullets(how(summary))]),
        Section(
            "Settings and versions",
            [settings_table(asdict(summary.settings)), versions_table(summary.versions)],
            folded=True,
        ),
    ]


def headline(summary: Summary) -> list[str]:
    """The result in sentences, one a fault rate."""
    by = {(row.level, row.treatment): row for row in summary.rows}
    clean = by[(None, "int8, fault-free")].accuracy
    said = []
    for rate in levels(summary.rows):
        original, twa, both = (by[(rate, name)].accuracy.value for name in ("original", "TWA", "TWA+CLP"))
        lost = clean.value - original
        regained = (both - original) / lost if lost > 0 else 0.0
        said.append(
            f"At {rate:g} faults per MAC, accuracy falls from {100 * clean.value:.1f} % to {100 * original:.1f} %; "
            f"retraining with the accelerator (TWA) brings it to {100 * twa:.1f} %, and with the critical layer "
            f"protected (TWA+CLP) to {100 * both:.1f} %: {100 * regained:.0f} % of the loss is recovered."
        )
    return said


def how(summary: Summary) -> list[str]:
    """What was done, in sentences."""
    s = summary.settings
    return [
        device_words(s),
        "Faults flip one bit of a lane's 32-bit accumulator after an accumulation step, drawn uniformly over all "
        "steps, outputs, images and bits; all networks at one rate meet the same faults.",
        f"Each retraining saw {s.train_images:,} training images in batches of {s.batch} (SGD, learning "
        f"rate {s.lr:g}), under faults other than those of the test.",
        f"The protected layer is the one with the largest share of outputs more than {s.threshold} units off "
        f"(measured on {s.probe_images} training images); it runs on the CPU in the same integers.",
        "Intervals are Wilson's at 95 %; changes are paired image by image (Newcombe's interval, exact McNemar test).",
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


def _protection_words(summary: Summary) -> str:
    return (
        f"Share of each layer's outputs that are more than {summary.settings.threshold} units off, compared with "
        "what the layer makes of the same input without faults; the layer with the largest share is protected."
    )


def plot(summary: Summary) -> Figure:
    """Accuracy against fault rate, and errors by layer."""
    faulty = [row for row in summary.rows if row.level is not None]
    rates = levels(faulty)
    clean = next(row for row in summary.rows if row.treatment == "int8, fault-free").accuracy
    with figure.pyplot() as plt:
        picture, (left, right) = plt.subplots(
            1, 2, figsize=(12, 5), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
        )
        left.axhline(100 * clean.value, color=figure.INK, linewidth=1, linestyle=(0, (6, 3)))
        left.annotate(
            f"fault-free int8: {100 * clean.value:.1f} %",
            (1, 100 * clean.value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            color=figure.INK,
        )
        treatments = [name for name in figure.COLOURS if any(row.treatment == name for row in faulty)]
        width = 0.8 / len(treatments)
        for at, name in enumerate(treatments):
            rows = sorted((row for row in faulty if row.treatment == name), key=lambda row: row.level or 0)
            x = np.arange(len(rates)) + (at - (len(treatments) - 1) / 2) * width
            y = np.array([100 * row.accuracy.value for row in rows])
            ends = np.array([row.accuracy.interval for row in rows]) * 100
            bars = left.bar(x, y, width * 0.92, color=figure.COLOURS[name], label=name)
            left.errorbar(
                x, y, [y - ends[:, 0], ends[:, 1] - y], fmt="none", ecolor=figure.INK, capsize=2.5, linewidth=1
            )
            left.bar_label(bars, [f"{value:.0f}" for value in y], label_type="center", color="white", fontsize=10)
        left.set_xticks(range(len(rates)), [shown_level(rate) for rate in rates])
        left.set_xlabel("soft errors per MAC (bit flips in the accumulator, per accumulation step)")
        left.set_ylabel(f"accuracy on {clean.trials:,} test images, %")
        left.set_ylim(0, 108)
        left.set_yticks(range(0, 101, 20))
        figure.legend(left, len(treatments))
        figure.title(left, "Damage and recovery")

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
        right.set_xlabel(f"outputs off by more than {summary.settings.threshold} units, %")
        figure.legend(right, 4)
        figure.title(right, "Which layer makes the errors")
        return figure.render(picture, "soft-errors", "Accuracy against fault rate, and errors by layer")
