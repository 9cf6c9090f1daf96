"""Soft errors: accuracy against their rate, for the original, protected and retrained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from host.datasets import data
from host.faults.models import SoftErrors
from host.run import RunError
from host.store.files import write_atomic
from host.studies import treatments
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

TRANSIENT = ("input", "feature")
"""Stored bits whose flips last for one image."""


@dataclass(frozen=True)
class SoftErrorSettings(Settings):
    """Attributes: those of Settings, and

    rates : tuple of float
    per : str
        What they are per: "mac" (accumulation step) or "bit" (stored bit: the bit error rate).
    sites : tuple of str
        Which bits are stored; all that are read anew for each image by default.
    seeds : tuple of int
        Of the retrainings; each is repeated with every one.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    per: Literal["mac", "bit"] = "mac"
    sites: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)

    def fault(self, rate: float) -> SoftErrors:
        """Soft errors at a rate.

        Raises
        ------
        RunError
            If they are none, or would be the same ones for all images.
        """
        if "weight" in self.sites:
            raise RunError(
                "a flip in a weight stays for all test images, so that one draw of them says little: compare trainings "
                "over many draws with 'redline campaign run --rate R --per bit --site weight --arm NAME:weights=FILE'"
            )
        sites = self.sites or (TRANSIENT if self.per == "bit" else ())
        try:
            return SoftErrors(rate, self.per, sites)
        except ValueError as error:
            raise RunError(str(error)) from error


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
    for rate in settings.rates:
        settings.fault(rate)  # what makes no sense is refused before anything is computed
    options = {"saboteur": True}
    with Workbench(
        folder, settings, study="soft errors", device_options=options, data_dir=data_dir, console=console
    ) as bench:
        summary = _measure(bench, settings)
    write_atomic(folder / "results.csv", table_csv(summary.rows, f"rate_per_{settings.per}"))
    document.write(folder, Document("LeNet-5 on Fashion-MNIST, with soft errors", shown.sections(summary)))
    return summary


def _measure(bench: Workbench, settings: SoftErrorSettings) -> Summary:
    tested = len(bench.test)
    per_rate = treatments.images(bench, len(settings.seeds), clp=True)
    with metered(bench.console, 2 * tested + len(settings.rates) * per_rate) as meter:
        float_ = bench.float_accuracy(meter)
        clean = bench.tested("int8", bench.twin, None, meter)
        written = bench.evaluated("int8 write-back", lambda: _write_back(bench, meter), meter, tested)
        rows = [Row.of(None, "float", float_), Row.of(None, "int8, fault-free", clean, against=float_)]
        for rate in settings.rates:
            rows += treatments.measure(bench, rate, settings.fault(rate), clean, meter, settings.seeds, clp=True)
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


def _guesses(rows: Sequence[Row], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What each treatment takes the first test images for."""
    said = []
    for row in rows:
        if row.treatment == "float":
            continue
        name = row.treatment if row.level is None else f"{row.treatment}, {row.level:g}"
        name += "" if row.seed is None else f", seed {row.seed}"
        guesses = [data.FASHION_CLASSES[i] for i in row.evaluation.predicted[: len(labels)].tolist()]
        said.append((name, ["=" if guess == label else guess for guess, label in zip(guesses, labels, strict=True)]))
    return said
