"""What the study of overclocking shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
from host.studies.results import levels, percent, pooled, results_table, seed_column, shown_level
from hw.delays import Table as DelayTable

if TYPE_CHECKING:
    from host.studies.overclock import Summary
    from host.training.microscope import WordErrors

LEVEL = "clock, MHz"


def sections(summary: Summary) -> list[Section]:
    """The report's parts; the first has no heading of its own."""
    parts = [
        Section("", [Bullets(headline(summary)), plot(summary)]),
        Section(
            "Where accuracy has fallen by one point and by five", [tipping_table(summary), _tipping_words(summary)]
        ),
        Section(
            "Results",
            [results_table(summary.rows, LEVEL, ("training seed", seed_column)), treatment_words(summary.rows)],
        ),
        *protection_section(summary.rows, LEVEL, summary.settings.threshold),
    ]
    words_of = (
        f"Of the original network on {summary.settings.probe_images} training images: the share of wrong words, their "
        "mean distance from the right one, and the bits that are wrong most often. A layer is compared with what it "
        "makes of the same input without errors."
    )
    return [
        *parts,
        Section("What the layers do wrong", [words_of, errors_table(summary), bits_plot(summary)]),
        Section("How", [Bullets(how(summary))]),
        settings_section(summary.settings, summary.versions),
    ]


def tipping_table(summary: Summary) -> Table:
    """The clock at which each curve has fallen by one point and by five, and the gain over the original's."""
    body = []
    for drop, (tips, gains) in summary.tips.items():
        for name, tip in tips.items():
            gain, low, high = gains[name]
            gained = "" if name == "original" else f"{100 * gain:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
            rate = f"{1e6 * tip.mhz / summary.cycles:,.0f}"
            body.append([f"{100 * drop:g}", name, str(tip), gained, rate])
    return Table(["points", "network", "clock [95 %]", "gain over original [95 %]", "images/s there"], body, group=0)


def _tipping_words(summary: Summary) -> str:
    seeds = len(summary.settings.seeds)
    source = "counted" if summary.counted else "by the cycle model"
    return (
        "So many points below the fault-free int8 network, interpolated between measured clocks. Intervals: percentile "
        f"bootstrap over test images (the same for all networks and clocks) and {seeds} training seed(s). Images/s: "
        f"the clock over the cycles of an image on one array ({source}); a "
        "protected layer's time on the CPU is not in it."
    )


def headline(summary: Summary) -> list[str]:
    """The result in sentences."""
    said = []
    for drop, (tips, gains) in summary.tips.items():
        lost = "one point" if drop == 0.01 else f"{100 * drop:g} points"
        others = [
            f"{name} at {tips[name]} ({100 * gains[name][0]:+.1f} % [{100 * gains[name][1]:+.1f}, "
            f"{100 * gains[name][2]:+.1f}])"
            for name in ("TWA", "TWA+CLP")
        ]
        said.append(f"The original network has lost {lost} at {tips['original']}, {' and '.join(others)}.")
    top = max(levels(summary.rows))
    at = {name: pooled(summary.rows, name, top) for name in LOOP}
    said.append(f"At {top:g} MHz: " + "; ".join(f"{name} {percent(rate)}" for name, rate in at.items()) + ".")
    if not summary.repeatable:
        said.append("A SECOND RUN GAVE OTHER OUTPUTS: the errors are not deterministic, which is a defect.")
    return said


def how(summary: Summary) -> list[str]:
    """What was done, in sentences."""
    s = summary.settings
    return [
        device_words(s),
        f"Errors are those of the adders' registers at each clock, from the delay table of {_placed(s.delays)}: a "
        "register captures the operand bits that arrived in time, and the step before's for the rest.",
        "The same input at the same clock makes the same errors; a repeated run gave the same outputs, byte for byte."
        if summary.repeatable
        else "A repeated run gave other outputs.",
        retraining_words(s, "at the clock at which it is tested"),
        protection_words(s, " at that clock"),
    ]


def _placed(table: DelayTable) -> str:
    return (
        f"{len(table.lanes)} lanes placed and routed for {table.part}, speed grade {table.speed_grade} (placement seed "
        f"{table.seed}, static limit {table.static_fmax_mhz():.1f} MHz)"
    )


def plot(summary: Summary) -> Figure:
    """Accuracy against the clock, and which layer makes the errors."""
    rows = summary.rows
    clocks = levels(rows)
    clean = next(row for row in rows if row.treatment == "int8, fault-free").accuracy
    with figure.pyplot() as plt:
        picture, (left, right) = plt.subplots(
            1, 2, figsize=(12, 5), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
        )
        clean_line(left, clean)
        static = summary.settings.delays.static_fmax_mhz()
        left.axvline(static, color=figure.INK, linewidth=0.8, linestyle=":")
        left.annotate(
            f"static limit {static:.1f} MHz",
            (static, 0),
            xytext=(4, 4),
            textcoords="offset points",
            rotation=90,
            color=figure.INK,
            fontsize=9,
        )
        accuracy_curves(left, rows)
        left.set_xlabel("clock, MHz")
        left.set_ylabel(f"accuracy on {clean.trials:,} test images, %")
        left.set_ylim(0, 104)
        figure.legend(left, 6)
        figure.title(left, "Accuracy over the clock")

        for at, layer in enumerate(summary.errors[clocks[0]]):
            shares = [100 * summary.errors[mhz][at].accumulator.rate.value for mhz in clocks]
            right.plot(clocks, shares, marker="o", markersize=4, label=layer.layer)
        right.set_yscale("symlog", linthresh=0.1)
        right.set_ylim(bottom=0)
        right.set_xlabel("clock, MHz")
        right.set_ylabel("wrong accumulators at the end of an output, %")
        figure.legend(right, 5)
        figure.title(right, "How often each layer errs")
        return figure.render(picture, "overclock", "Accuracy against the clock, and errors by layer")


def errors_table(summary: Summary) -> Table:
    """Errors of the layers at each clock."""
    body = []
    for mhz, layers in summary.errors.items():
        for layer in layers:
            cells = [*_cells(layer.accumulator), *_cells(layer.output)]
            body.append([shown_level(mhz), layer.layer, *cells])
    head = [LEVEL, "layer", "wrong accumulators", "mean distance", "bits", "wrong outputs", "mean distance", "bits"]
    return Table(head, body, group=0)


def _cells(errors: WordErrors) -> list[str]:
    """Rate, mean distance, and the bits that are wrong most often."""
    low, high = errors.rate.interval
    wrong = np.argsort(-np.array(errors.bits), kind="stable")[:3].tolist()
    often = ", ".join(str(bit) for bit in wrong if errors.bits[bit])
    return [f"{100 * errors.rate.value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]", f"{errors.magnitude:,.1f}", often]


def bits_plot(summary: Summary) -> Figure:
    """How often each bit of the accumulators is wrong, by layer, at every clock."""
    clocks = list(summary.errors)
    names = [layer.layer for layer in summary.errors[clocks[0]]]
    shares = np.array(
        [
            [100 * np.array(layer.accumulator.bits) / layer.accumulator.words for layer in summary.errors[mhz]]
            for mhz in clocks
        ]
    )
    with figure.pyplot() as plt:
        picture, panels = plt.subplots(
            1, len(names), figsize=(12, 3.6), sharey=True, layout="constrained", squeeze=False
        )
        top = max(float(shares.max()), 1e-9)
        for at, (axes, name) in enumerate(zip(panels[0], names, strict=True)):
            image = axes.imshow(shares[:, at].T, aspect="auto", origin="lower", cmap="magma_r", vmin=0, vmax=top)
            axes.set_xticks(range(len(clocks)), [shown_level(mhz) for mhz in clocks], rotation=60)
            axes.set_title(name, fontsize=11)
            axes.set_xlabel("clock, MHz")
        panels[0, 0].set_ylabel("bit of the accumulator")
        picture.colorbar(image, ax=panels[0], label="wrong, % of words")
        return figure.render(picture, "overclock-bits", "Which bits of the accumulators are wrong, by layer and clock")
