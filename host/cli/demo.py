"""`redline demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

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
    TestImages,
    TrainImages,
    Units,
    clocks_of,
    interruptible,
    open_folder,
    rates_of,
    run_folder,
    show_files,
    show_table,
)


@app.command()
def demo(
    name: RunName = "demo",
    out: Out = Path("runs"),
    device: DeviceName = "simulation",
    clocks: Clocks = "186,190,194,198,202",
    rates: Rates = "0.001",
    test_images: TestImages = 2000,
    train_images: TrainImages = 4096,
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
    from host.studies.overclock import OverclockSettings
    from host.studies.report import overclock as clock_shown
    from host.studies.report import soft_errors as flips_shown
    from host.studies.results import short_table
    from host.studies.soft_errors import SoftErrorSettings
    from host.studies.workbench import Settings

    folder = run_folder(out, name)
    same = Settings(device=device, units=units, test_images=test_images, train_images=train_images, lr=lr, seed=seed)
    settings = study.Settings(
        overclock=OverclockSettings(**asdict(same), seeds=(seed,), clocks=clocks_of(clocks)),
        soft_errors=SoftErrorSettings(**asdict(same), seeds=(seed,), rates=rates_of(rates)),
    )
    open_folder(folder, study.started, resume=resume, restart=restart)
    with interruptible():
        found = study.run(folder, settings, data_dir=data_dir, console=console)
    show_table(short_table(found.overclock.rows, clock_shown.LEVEL), "LeNet-5 on Fashion-MNIST, overclocked")
    show_table(clock_shown.tipping_table(found.overclock), "Where accuracy has fallen by one point and by five")
    show_table(short_table(found.soft_errors.rows, flips_shown.LEVELS["mac"]), "The same network hit by soft errors")
    for line in [*clock_shown.headline(found.overclock), *flips_shown.headline(found.soft_errors)]:
        console.print(line)
    console.print(flips_shown.writeback_words(found.soft_errors.writeback))
    show_files(folder)
