"""`redline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from host.cli.app import DataDir, app, console, errors, fail


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="Name of the run: results go to OUT/NAME.")] = "demo",
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    device: Annotated[
        str, typer.Option(help="simulation (the RTL) or reference (the same bytes, no RTL).")
    ] = "simulation",
    rates: Annotated[
        str, typer.Option(help="Soft errors per MAC, one or more.", metavar="R,R,...")
    ] = "0.0003,0.001,0.003",
    test_images: Annotated[int, typer.Option(min=1, max=10_000, help="Images of each evaluation.")] = 2000,
    train_images: Annotated[int, typer.Option(min=64, help="Images of each retraining.")] = 8192,
    lr: Annotated[float, typer.Option(help="Learning rate of retraining.")] = 0.03,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    units: Annotated[int, typer.Option(min=1, help="Simulator processes.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on an interrupted run to go on with.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what the folder holds.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Damage a LeNet-5 on a faulty accelerator, retrain it there, and report.

    An interrupted run of the same name and settings goes on where it stopped.
    """
    from host import demo as demo_module

    folder = out / name
    if resume and restart:
        raise typer.Exit(fail("say --resume or --restart, not both"))
    if resume and not (folder / "config.json").exists():
        raise typer.Exit(fail(f"{folder}: no run to resume"))
    if (folder / "report.html").exists() and not restart:
        console.print(f"{folder} holds a finished run; showing it (use --restart to run anew).")
    settings = demo_module.Settings(
        device=device,
        units=units,
        rates=_rates(rates),
        test_images=test_images,
        train_images=train_images,
        lr=lr,
        seed=seed,
    )
    try:
        summary = demo_module.run(folder, settings, data_dir=data_dir, restart=restart, console=console)
    except KeyboardInterrupt as stopped:
        errors.print(f"interrupted{f' ({stopped})' if str(stopped) else ''}; the same command goes on from here")
        raise typer.Exit(130) from None
    _show(summary, folder)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint="--rates") from None
    if any(not 0 < rate < 1 for rate in rates) or len(set(rates)) != len(rates):
        raise typer.BadParameter("rates must differ and lie between 0 and 1", param_hint="--rates")
    return rates


def _show(summary: Any, folder: Path) -> None:
    from host import report

    head, body = report.short_table(summary)
    table = Table(title=summary.title, title_justify="left")
    for column in head:
        table.add_column(column)
    before = None
    for row in body:
        if before is not None and row[0] != before:
            table.add_section()
        before = row[0]
        table.add_row(*row)
    console.print(table)
    for line in report.headline(summary):
        console.print(line)
    console.print(report.writeback_words(summary))
    console.print(
        f"Report: {folder / 'report.html'} (browser), {folder / 'report.md'} (text), {folder / 'results.csv'}"
    )
