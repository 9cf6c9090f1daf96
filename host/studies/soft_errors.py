"""Soft errors: accuracy against their rate, for the original, protected and retrained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from host.datasets import data
from host.faults.models import SoftErrors
from host.store.files import write_atomic
from host.studies.report import document
from host.studies.report import soft_errors as shown
from host.studies.report.document import Document, Samples
from host.studies.results import (
    Row,
    WriteBack,
    table_csv,
)
from host.studies.workbench import Meter, Settings, Workbench, metered
from host.training.train import Evaluation, evaluate


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
    document.write(folder, Document("LeNet-5 on Fashion-MNIST, with soft errors", shown.sections(summary)))
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
