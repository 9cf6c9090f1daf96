"""What commands that run studies share: their options, folders and tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console, errors, fail
from host.studies.report import document

RunName = Annotated[str, typer.Option("--name", help="Name of the run: results go to OUT/NAME.")]
Out = Annotated[Path, typer.Option(help="Folder of runs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Insist on an interrupted run to go on with.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what the folder holds.")]
DeviceName = Annotated[
    str, typer.Option(help="simulation (the RTL), or emulator, opencl, reference (the same bytes, no RTL).")
]
TestImages = Annotated[int, typer.Option(min=1, max=10_000, help="Images of each evaluation.")]
TrainImages = Annotated[int, typer.Option(min=64, help="Images of each retraining.")]
LearningRate = Annotated[float, typer.Option(help="Learning rate of retraining.")]
Units = Annotated[int, typer.Option(min=1, help="Simulator processes.")]
Seed = Annotated[int, typer.Option(min=0)]
Seeds = Annotated[str, typer.Option(help="Training seeds.", metavar="S,S,...")]
Clocks = Annotated[str, typer.Option(help="MHz.", metavar="F,F,...")]
Rates = Annotated[str, typer.Option(help="Rates of soft errors, one or more.", metavar="R,R,...")]


def clocks_of(text: str) -> tuple[float, ...]:
    """MHz, ascending."""
    return tuple(sorted(numbers(text, "--clocks", 0, 10_000)))


def rates_of(text: str) -> tuple[float, ...]:
    """Rates, as given."""
    return numbers(text, "--rates", 0, 1)


def seeds_of(text: str) -> tuple[int, ...]:
    """Training seeds, as given."""
    return tuple(int(seed) for seed in numbers(text, "--seeds", -1, 2**31))


def numbers(text: str, hint: str, low: float, high: float) -> tuple[float, ...]:
    """A list of different numbers, each between `low` and `high` (exclusive), from an option."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint=hint) from None
    if any(not low < value < high for value in values) or len(set(values)) != len(values):
        raise typer.BadParameter(f"the numbers must differ and lie between {low:g} and {high:g}", param_hint=hint)
    return values


def run_folder(out: Path, name: str) -> Path:
    """OUT/NAME; ends the command if that is not a folder within OUT."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or not name.isprintable():
        raise typer.Exit(fail(f"a run's name is that of a folder within --out ({out}), not {name!r}"))
    at = out
    for part in ("", *parts):
        at = at / part
        if at.exists() and not at.is_dir():
            raise typer.Exit(fail(f"{at} is not a folder: choose another --out or name"))
    return at


def open_folder(
    folder: Path, started: Callable[[Path], bool], *, restart: bool, resume: bool = False, goes_on: bool = False
) -> None:
    """Make ready a run's folder: refuse contradictory options, throw away what it holds if that is asked for.

    Parameters
    ----------
    started : callable
        Whether a folder holds such a run, finished or not; no other folder is thrown away.
    goes_on : bool
        A finished run may become longer; otherwise it is said that it is only shown.
    """
    if resume and restart:
        raise typer.Exit(fail("say --resume or --restart, not both"))
    if resume and not started(folder):
        raise typer.Exit(fail(f"{folder}: no run to resume"))
    if restart and started(folder):
        if folder.is_symlink() or folder.parent.is_symlink():
            raise typer.Exit(
                fail(
                    f"{folder} is a link, or in one: --restart does not throw away what lies elsewhere "
                    f"({folder.resolve()}); do so by hand, or use another name"
                )
            )
        shutil.rmtree(folder)
    elif (folder / "report.html").exists() and not goes_on:
        console.print(f"{folder} holds a finished run; showing it (use --restart to run anew).")


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command with status 130 and a word on how to go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        errors.print(f"interrupted{f' ({stopped})' if str(stopped) else ''}; the same command goes on from here")
        raise typer.Exit(130) from None


def show_table(table: document.Table, title: str) -> None:
    """A table in the terminal."""
    shown = Table(title=title, title_justify="left")
    for column in table.head:
        shown.add_column(column)
    before = None
    for row in table.body:
        mine = None if table.group is None else row[table.group]
        if before is not None and mine != before:
            shown.add_section()
        before = mine
        shown.add_row(*row)
    console.print(shown)


def show_files(folder: Path) -> None:
    """Where the report is."""
    console.print(f"Report: {folder / 'report.html'} (browser), {folder / 'report.md'} (text); tables beside it")
