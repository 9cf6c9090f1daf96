"""`redline sweep`: accuracy over a fault's level, for the original, retrained and protected network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from host.cli.app import DataDir, app, console
from host.cli.study import (
    Clocks,
    DeviceName,
    LearningRate,
    Out,
    Rates,
    Restart,
    Resume,
    RunName,
    Seed,
    Seeds,
    TestImages,
    TrainImages,
    Units,
    clocks_of,
    interruptible,
    open_folder,
    rates_of,
    run_folder,
    seeds_of,
    show_files,
    show_table,
)

sweep_app = typer.Typer(
    help="Accuracy over the clock, or over a fault rate; original, TWA, TWA+CLP.", no_args_is_help=True
)
app.add_typer(sweep_app, name="sweep")


@sweep_app.command("overclock")
def sweep_overclock(
    name: RunName = "overclock",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    clocks: Clocks = "186,188,190,192,195,198,202,206",
    placement: Annotated[int, typer.Option(help="Delay table: seed of a placement that comes with Redline.")] = 2,
    table: Annotated[Path | None, typer.Option(help="A delay table's file, instead.")] = None,
    seeds: Seeds = "1,2,3",
    baselines: Annotated[bool, typer.Option(help="Also retrain without errors, with noise, and with dropout.")] = True,
    test_images: TestImages = 2000,
    train_images: TrainImages = 4096,
    lr: LearningRate = 0.03,
    units: Units = 2,
    resume: Resume = False,
    restart: Restart = False,
    data_dir: DataDir = None,
) -> None:
    """Overclock LeNet-5's accelerator: errors from place and route, accuracy over the clock."""
    from host.studies import overclock, workbench
    from host.studies.report import overclock as shown
    from host.studies.results import short_table

    folder = run_folder(out, name)
    settings = overclock.OverclockSettings(
        device=device,
        units=units,
        clocks=clocks_of(clocks),
        placement=placement,
        table="" if table is None else str(table),
        seeds=seeds_of(seeds),
        baselines=baselines,
        test_images=test_images,
        train_images=train_images,
        lr=lr,
    )
    open_folder(folder, workbench.started, resume=resume, restart=restart)
    with interruptible():
        summary = overclock.run(folder, settings, data_dir=data_dir, console=console)
    show_table(short_table(summary.rows, shown.LEVEL), "LeNet-5 on Fashion-MNIST, overclocked")
    show_table(shown.tipping_table(summary), "Where accuracy has fallen by one point and by five")
    for line in shown.headline(summary):
        console.print(line)
    show_files(folder)


@sweep_app.command("soft-errors")
def sweep_soft_errors(
    name: RunName = "soft-errors",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    rates: Rates = "0.0001,0.0003,0.001,0.003",
    per: Annotated[str, typer.Option(help="What the rates are per: mac, or bit (the bit error rate).")] = "mac",
    site: Annotated[str, typer.Option(help="Per bit: input, feature, or both with a comma.  [default: both]")] = "",
    seeds: Seeds = "1",
    test_images: TestImages = 2000,
    train_images: TrainImages = 8192,
    lr: LearningRate = 0.03,
    seed: Seed = 1,
    units: Units = 2,
    resume: Resume = False,
    restart: Restart = False,
    data_dir: DataDir = None,
) -> None:
    """Hit LeNet-5's accelerator with soft errors, in accumulators or in memory: accuracy over their rate.

    --seed is that of the test's faults, --seeds are those of the retrainings.
    """
    from host.studies import soft_errors, workbench
    from host.studies.report import soft_errors as shown
    from host.studies.results import means_table, short_table

    folder = run_folder(out, name)
    settings = soft_errors.SoftErrorSettings(
        device=device,
        units=units,
        rates=rates_of(rates),
        per=cast('Literal["mac", "bit"]', per),
        sites=tuple(part.strip() for part in site.split(",")) if site else (),
        seeds=seeds_of(seeds),
        test_images=test_images,
        train_images=train_images,
        lr=lr,
        seed=seed,
    )
    open_folder(folder, workbench.started, resume=resume, restart=restart)
    with interruptible():
        summary = soft_errors.run(folder, settings, data_dir=data_dir, console=console)
    table = means_table if len(settings.seeds) > 1 else short_table
    show_table(table(summary.rows, shown.LEVELS[settings.per]), "LeNet-5 on Fashion-MNIST, with soft errors")
    for line in shown.headline(summary):
        console.print(line)
    show_files(folder)
