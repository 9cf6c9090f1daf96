"""`redline sweep`: accuracy over a fault's level, for the original, retrained and protected network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from host.cli.app import DataDir, app, console
from host.cli.study import (
    DeviceName,
    LearningRate,
    Out,
    Restart,
    Resume,
    Seed,
    TestImages,
    TrainImages,
    Units,
    check_folder,
    interruptible,
    numbers,
    show_files,
    show_table,
)

sweep_app = typer.Typer(
    help="Accuracy over the clock, or over a fault rate; original, TWA, TWA+CLP.", no_args_is_help=True
)
app.add_typer(sweep_app, name="sweep")


@sweep_app.command("overclock")
def sweep_overclock(
    name: Annotated[str, typer.Option(help="Name of the run: results go to OUT/NAME.")] = "overclock",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    clocks: Annotated[str, typer.Option(help="MHz.", metavar="F,F,...")] = "186,188,190,192,195,198,202,206",
    placement: Annotated[int, typer.Option(help="Delay table: seed of a placement that comes with Redline.")] = 2,
    table: Annotated[Path | None, typer.Option(help="A delay table's file, instead.")] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds.", metavar="S,S,...")] = "1,2,3",
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

    folder = out / name
    settings = overclock.OverclockSettings(
        device=device,
        units=units,
        clocks=tuple(sorted(numbers(clocks, "--clocks", 0, 10_000))),
        placement=placement,
        table="" if table is None else str(table),
        seeds=tuple(int(seed) for seed in numbers(seeds, "--seeds", -1, 2**31)),
        baselines=baselines,
        test_images=test_images,
        train_images=train_images,
        lr=lr,
    )
    check_folder(folder, started=(folder / "config.json").exists(), resume=resume, restart=restart)
    if restart:
        workbench.clear(folder)
    with interruptible():
        summary = overclock.run(folder, settings, data_dir=data_dir, console=console)
    show_table(short_table(summary.rows, shown.LEVEL), "LeNet-5 on Fashion-MNIST, overclocked")
    show_table(shown.tipping_table(summary), "Where accuracy has fallen by one point and by five")
    for line in shown.headline(summary):
        console.print(line)
    show_files(folder)


@sweep_app.command("soft-errors")
def sweep_soft_errors(
    name: Annotated[str, typer.Option(help="Name of the run: results go to OUT/NAME.")] = "soft-errors",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    rates: Annotated[
        str, typer.Option(help="Soft errors per MAC, one or more.", metavar="R,R,...")
    ] = "0.0001,0.0003,0.001,0.003",
    test_images: TestImages = 2000,
    train_images: TrainImages = 8192,
    lr: LearningRate = 0.03,
    seed: Seed = 1,
    units: Units = 2,
    resume: Resume = False,
    restart: Restart = False,
    data_dir: DataDir = None,
) -> None:
    """Hit LeNet-5's accelerator with soft errors: bit flips in the accumulators, accuracy over their rate."""
    from host.studies import soft_errors, workbench
    from host.studies.report import soft_errors as shown
    from host.studies.results import short_table

    folder = out / name
    check_folder(folder, started=(folder / "config.json").exists(), resume=resume, restart=restart)
    if restart:
        workbench.clear(folder)
    settings = soft_errors.SoftErrorSettings(
        device=device,
        units=units,
        rates=numbers(rates, "--rates", 0, 1),
        test_images=test_images,
        train_images=train_images,
        lr=lr,
        seed=seed,
    )
    with interruptible():
        summary = soft_errors.run(folder, settings, data_dir=data_dir, console=console)
    show_table(short_table(summary.rows, shown.LEVEL), "LeNet-5 on Fashion-MNIST, with soft errors")
    for line in shown.headline(summary):
        console.print(line)
    show_files(folder)
