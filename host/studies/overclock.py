"""Overclocking: accuracy against the clock, for the original, retrained and protected network."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from host.faults.overclock import Overclock
from host.schedule.cycles import estimate
from host.schedule.launch import schedule
from host.store.files import write_atomic
from host.studies import treatments
from host.studies.curves import curves
from host.studies.report import document
from host.studies.report import overclock as shown
from host.studies.report.document import Document
from host.studies.results import Row, table_csv
from host.studies.tipping import Gain, Tip, tips
from host.studies.workbench import Meter, Settings, Workbench, metered
from host.training.baselines import Disturbance, dropout, gaussian_noise, retrain_disturbed
from host.training.checkpoint import save_weights
from host.training.microscope import LayerErrors, WordErrors, layer_errors
from host.training.train import Evaluation
from hw.delays import Table as DelayTable
from hw.masks import MOST_GROUPS
from sim.timing import shipped

KINDS = ("accumulator", "output")
EVALUATION_BATCH = 256
DROPS = (0.01, 0.05)
"""Falls in accuracy whose clocks are reported, as shares of images."""


@dataclass(frozen=True)
class OverclockSettings(Settings):
    """Attributes: those of Settings, and

    placement : int
        Which of the delay tables that come with Redline: the seed of the placement.
    table : str
        A delay table's file, instead.
    clocks : tuple of float
        MHz, ascending.
    seeds : tuple of int
        Of the retrainings; each is repeated with every one.
    baselines : bool
        Also retrain without errors, in float with noise, and in float with dropout.
    noise, dropout : float
        Standard deviation of the noise, in a layer's own; share of outputs dropped.
    """

    placement: int = 2
    table: str = ""
    clocks: tuple[float, ...] = (186.0, 188.0, 190.0, 192.0, 195.0, 198.0, 202.0, 206.0)
    seeds: tuple[int, ...] = (1,)
    baselines: bool = False
    noise: float = 0.1
    dropout: float = 0.1

    @cached_property
    def delays(self) -> DelayTable:
        """The delay table."""
        if self.table:
            return DelayTable.load(self.table)
        return shipped.load(self.lanes, self.vec, self.placement)

    def fault(self, mhz: float) -> Overclock:
        """The accelerator at a clock."""
        return Overclock(mhz=mhz, table=self.delays)


@dataclass(frozen=True)
class Summary:
    """Everything a report of this study shows.

    Attributes
    ----------
    cycles : float
        An image's, fault-free, chained: counted, or from the cycle model if the device counts none.
    counted : bool
    repeatable : bool
        Whether a second run at the middle clock gave the same outputs, byte for byte.
    tips
        For each share of `DROPS`: what `tips` gives, the clocks and the gains of every treatment.
    errors
        At each clock, what each layer of the original network does wrong on the input that it gets.
    """

    settings: OverclockSettings
    versions: dict[str, str]
    rows: list[Row]
    cycles: float
    counted: bool
    repeatable: bool
    tips: dict[float, tuple[dict[str, Tip], dict[str, Gain]]]
    errors: dict[float, list[LayerErrors]]


def run(
    folder: Path, settings: OverclockSettings, *, data_dir: str | None = None, console: Console | None = None
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
    for mhz in settings.clocks:
        settings.fault(mhz)  # a clock beyond the model is refused before anything is computed
    with Workbench(
        folder,
        settings,
        study="overclock",
        about={"delay_table": settings.delays.hash},
        device_options={"overclock": MOST_GROUPS},
        data_dir=data_dir,
        console=console,
    ) as bench:
        summary = _measure(bench, settings)
    write_atomic(folder / "results.csv", table_csv(summary.rows, "mhz"))
    document.write(folder, Document("LeNet-5 on Fashion-MNIST, overclocked", shown.sections(summary)))
    return summary


def _measure(bench: Workbench, s: OverclockSettings) -> Summary:
    tested, retrained, clocks, seeds = len(bench.test), s.images_per_retraining, len(s.clocks), len(s.seeds)
    images = 2 * tested + clocks * (s.probe_images + treatments.images(bench, seeds, clp=False))
    if s.baselines:
        images += seeds * (3 * clocks * tested + retrained)
    with metered(bench.console, images) as meter:
        float_ = bench.float_accuracy(meter)
        clean = bench.tested("int8", bench.twin, None, meter)
        rows = [Row.of(None, "float", float_), Row.of(None, "int8, fault-free", clean, against=float_)]
        errors = {}
        for mhz in s.clocks:
            rows += treatments.measure(bench, mhz, s.fault(mhz), clean, meter, s.seeds)
            errors[mhz] = _errors(bench, s, mhz, meter)
        if s.baselines:
            rows += _baselines(
                bench, s, {row.level: row.evaluation for row in rows if row.treatment == "original"}, meter
            )
        middle = s.clocks[clocks // 2]
        again = bench.tested(f"original {middle:g} again", bench.twin, s.fault(middle), meter)
    first = next(row for row in rows if row.treatment == "original" and row.level == middle)
    tipped = {drop: tips(s.clocks, curves(rows), clean.right, drop=drop) for drop in DROPS}
    return Summary(
        s,
        bench.versions,
        sorted(rows, key=lambda row: (row.level is not None, row.level or 0)),
        clean.report.cycles / tested if clean.report.cycles else _modelled_cycles(bench),
        clean.report.cycles > 0,
        again.digest == first.evaluation.digest,
        tipped,
        errors,
    )


def _modelled_cycles(bench: Workbench) -> float:
    """Cycles of an image, chained, from the cycle model: of a batch as evaluation launches them, on one array."""

    def model() -> dict[str, Any]:
        program = bench.twin().program
        launch = schedule(program, range(len(program.layers)), EVALUATION_BATCH, writeback=False)
        return {"cycles": estimate(launch).cycles / EVALUATION_BATCH}

    return float(bench.run.stage("modelled cycles", model)["cycles"])


def _errors(bench: Workbench, s: OverclockSettings, mhz: float, meter: Meter) -> list[LayerErrors]:
    """What each layer of the original network does wrong."""
    name = f"errors {mhz:g}"
    if bench.run.has(name):
        meter.skip(s.probe_images)

    def measure() -> dict[str, Any]:
        meter.stage(name, s.probe_images)
        images = bench.train.head(s.probe_images).pixels
        return {"layers": [asdict(layer) for layer in layer_errors(bench.twin(), s.fault(mhz), images)]}

    kept = bench.run.stage(name, measure)["layers"]
    return [
        LayerErrors(
            layer["layer"], *(WordErrors(**{**layer[kind], "bits": tuple(layer[kind]["bits"])}) for kind in KINDS)
        )
        for layer in kept
    ]


def _baselines(
    bench: Workbench, s: OverclockSettings, original: dict[float | None, Evaluation], meter: Meter
) -> list[Row]:
    """Each baseline at every clock."""
    rows = []
    for seed in s.seeds:
        weights = {
            "retrained fault-free": bench.retrained(f"fault-free seed {seed} retraining", None, (), meter, seed),
            "noise": _disturbed(bench, f"noise seed {seed}", gaussian_noise(s.noise), seed),
            "dropout": _disturbed(bench, f"dropout seed {seed}", dropout(s.dropout), seed),
        }
        for treatment, file in weights.items():
            for mhz in s.clocks:
                name = f"{treatment} {mhz:g} seed {seed}"
                found = bench.tested(name, treatments.twin_of(bench, file), s.fault(mhz), meter)
                rows.append(Row.of(mhz, treatment, found, against=original[mhz], against_name="original", seed=seed))
    return rows


def _disturbed(bench: Workbench, name: str, disturb: Disturbance, seed: int) -> Path:
    """File with the weights after retraining in float."""
    path = bench.run.state(f"{name} retraining.safetensors")

    def train() -> dict[str, Any]:
        net = copy.deepcopy(bench.pretrained)
        recipe = bench.settings.recipe(seed)
        retrain_disturbed(net, bench.train, recipe, disturb)
        save_weights(path, net)
        return {"steps": recipe.steps}

    bench.run.stage(f"{name} retraining", train, path)
    return path
