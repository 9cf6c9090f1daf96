"""Soft errors: accuracy against their rate, for the original, protected and retrained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from host.datasets import data
from host.faults.models import SoftErrors
from host.store.files import write_atomic
from host.studies.report import document, figure
from host.studies.report.document import Bullets, Document, Figure, Samples, Section, Table
from host.studies.results import (
    WORDS,
    Row,
    WriteBack,
    levels,
    protection_table,
    results_table,
    shown_level,
    table_csv,
)
from host.studies.workbench import Meter, Settings, Workbench, metered
from host.training.train import Evaluation, evaluate

LEVEL = "faults per MAC"


@dataclass(frozen=True)
class SoftErrorSettings(Settings):
    """Attributes: those of Settings, and

    rates : tuple of float
        Soft errors per accumulation step (MAC result).
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Summary:
    """Everything a report of this study shows."""

    settings: SoftErrorSettings
    versions: dict[str, str]
    rows: list[Row]
    writeback: WriteBack
    samples: Samples


def run(
    folder: Path,
    settings: SoftErrorSettings,
    *,
    data_dir: str | None = None,
    console: Console | None = None,
) -> Summary:
    """Compute what a folder lacks, then write table, plot and report into it.

    Raises
    ------
    RunError
        If the folder holds a run with other settings; names the parameter.
    DataError, DeviceError
        If the data set or the device is missing.
    Interrupted
        After Ctrl-C; running again with the same settings goes on.
    """
    options = {"saboteur": True}
    with Workbench(
        folder, settings, study="soft errors", device_options=options, data_dir=data_dir, console=console
    ) as bench:
        summary = _measure(bench, settings)
    write_atomic(folder / "results.csv", table_csv(summary.rows, "rate_per_mac"))
    document.write(folder, Document("LeNet-5 on Fashion-MNIST, with soft errors", sections(summary)))
    return summary


def _measure(bench: Workbench, settings: SoftErrorSettings) -> Summary:
    tested = len(bench.test)
    per_rate = 4 * tested + 2 * settings.images_per_retraining + settings.probe_images
    with metered(bench.console, 2 * tested + len(settings.rates) * per_rate) as meter:
        float_ = bench.float_accuracy(meter)
        clean = bench.tested("int8", bench.twin, None, meter)
        written = bench.evaluated("int8 write-back", lambda: _write_back(bench, meter), meter, tested)
        rows = [Row.of(None, "float", float_), Row.of(None, "int8, fault-free", clean, against=float_)]
        for rate in settings.rates:
            rows += _at(bench, rate, clean, meter)
    few = 12
    labels = [data.FASHION_CLASSES[i] for i in bench.test.labels[:few].tolist()]
    return Summary(
        settings,
        bench.versions,
        rows,
        WriteBack(tested, clean.report, written.report, clean.digest == written.digest),
        Samples(bench.test.images[:few, 0].numpy(), labels, _guesses(rows, labels)),
    )


def _write_back(bench: Workbench, meter: Meter) -> Evaluation:
    update = meter.stage("int8 write-back", len(bench.test))
    return evaluate(bench.twin(), bench.test, writeback=True, progress=update)


def _at(bench: Workbench, rate: float, clean: Evaluation, meter: Meter) -> list[Row]:
    tag, faults = f"{rate:g}", SoftErrors(rate, per="mac")
    original = bench.tested(f"original {tag}", bench.twin, faults, meter)
    choice = bench.protection(f"protection {tag}", faults, meter)
    names = tuple(choice["names"])
    clp = bench.tested(f"CLP {tag}", lambda: bench.twin(protect=names), faults, meter)
    twa_weights = bench.retrained(f"TWA retraining {tag}", faults, (), meter)
    twa = bench.tested(f"TWA {tag}", lambda: bench.twin(twa_weights), faults, meter)
    both_weights = bench.retrained(f"TWA+CLP retraining {tag}", faults, names, meter)
    both = bench.tested(f"TWA+CLP {tag}", lambda: bench.twin(both_weights, names), faults, meter)
    return [
        Row.of(rate, "original", original, against=clean, against_name="int8, fault-free", choice=choice),
        Row.of(rate, "CLP", clp, against=original, against_name="original", protected=names),
        Row.of(rate, "TWA", twa, against=original, against_name="original"),
        Row.of(rate, "TWA+CLP", both, against=original, against_name="original", protected=names),
    ]


def _guesses(rows: Sequence[Row], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What each treatment takes the first test images for."""
    said = []
    for row in rows:
        if row.treatment == "float":
            continue
        name = row.treatment if row.level is None else f"{row.treatment}, {row.level:g}"
        guesses = [data.FASHION_CLASSES[i] for i in row.evaluation.predicted[: len(labels)].tolist()]
        said.append((name, ["=" if guess == label else guess for guess, label in zip(guesses, labels, strict=True)]))
    return said


# ---- what is shown


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


def settings_table(settings: dict[str, Any]) -> Table:
    """Settings as text."""

    def shown(value: Any) -> str:
        return ", ".join(f"{v:g}" for v in value) if isinstance(value, (list, tuple)) else str(value)

    return Table(["setting", "value"], [[key, shown(value)] for key, value in settings.items()])


def versions_table(versions: dict[str, str]) -> Table:
    """Versions of the software."""
    return Table(["software", "version"], [[key, value] for key, value in versions.items()])


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
