"""`redline demo`."""

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


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="Name of the run: results go to OUT/NAME.")] = "demo",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    rates: Annotated[
        str, typer.Option(help="Soft errors per MAC, one or more.", metavar="R,R,...")
    ] = "0.0003,0.001,0.003",
    test_images: TestImages = 2000,
    train_images: TrainImages = 8192,
    lr: LearningRate = 0.03,
    seed: Seed = 1,
    units: Units = 2,
    resume: Resume = False,
    restart: Restart = False,
    data_dir: DataDir = None,
) -> None:
    """Damage a LeNet-5 on a faulty accelerator, retrain it there, and report.

    An interrupted run of the same name and settings goes on where it stopped.
    """
    from host.studies import demo as study
    from host.studies import soft_errors
    from host.studies.report import soft_errors as shown
    from host.studies.results import short_table

    folder = out / name
    check_folder(folder, started=study.started(folder), resume=resume, restart=restart)
    settings = study.Settings(
        soft_errors=soft_errors.SoftErrorSettings(
            device=device,
            units=units,
            rates=numbers(rates, "--rates", 0, 1),
            test_images=test_images,
            train_images=train_images,
            lr=lr,
            seed=seed,
        )
    )
    with interruptible():
        results = study.run(folder, settings, data_dir=data_dir, restart=restart, console=console)
    show_table(short_table(results.soft_errors.rows, shown.LEVEL), "LeNet-5 on Fashion-MNIST, with soft errors")
    for line in shown.headline(results.soft_errors):
        console.print(line)
    console.print(shown.writeback_words(results.soft_errors.writeback))
    show_files(folder)
