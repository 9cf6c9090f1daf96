"""`redline bitstream`: a bitstream for a board, from tools that pip installs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from host.cli.app import app, console, errors, say


@app.command("bitstream")
def bitstream(
    name: Annotated[str | None, typer.Argument(help="The board.", metavar="[BOARD]")] = None,
    mhz: Annotated[
        float | None, typer.Option(help="Clock; above Fmax is allowed: that is overclocking.", min=0.001)
    ] = None,
    lanes: Annotated[int | None, typer.Option(help="Lanes of the array; by default, what was found to fit.")] = None,
    vec: Annotated[int | None, typer.Option(help="Products a lane adds in a step; likewise.")] = None,
    seed: Annotated[int, typer.Option(help="Of the placement.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/bitstream/BOARD.", file_okay=False)] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the result into the committed table.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only print the committed table, as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Build a board's bitstream: synthesis, place and route, packing. Minutes; without BOARD, lists the boards."""
    from host.boards import flow, readme
    from host.boards import table as committed
    from hw.boards import catalogue

    if table:
        entries = committed.load()
        print(json.dumps({"boards": entries}) if as_json else committed.markdown(entries), end="\n" if as_json else "")
        return
    if name is None:
        boards = {board.name: board.title for board in catalogue.BOARDS.values()}
        if as_json:
            print(json.dumps({"boards": boards}))
            return
        for known, title in boards.items():
            console.print(f"{known:<14} {title}", highlight=False)
        return
    board = catalogue.find(name)
    wanted = flow.design(board, mhz=mhz, lanes=lanes, vec=vec, seed=seed)
    folder = out or Path("runs/bitstream") / board.name
    clock = float(wanted.setting.mhz)
    _expect(board.name, wanted, clock)

    began = time.monotonic()
    with _Steps(board.name) as steps:
        try:
            report = flow.build(wanted, folder, flow.Progress(steps.begin, steps.line))
        except flow.FitError as error:
            if record:
                committed.record(error.report)
            raise
    if record:
        committed.record(report)
    if as_json:
        print(json.dumps(report))
        return
    _summary(report, folder, time.monotonic() - began)
    console.print(readme.overclocking(report).replace("**", ""), highlight=False)


class _Steps:
    """Shows which step is under way, for how long, and the tool's last line; leaves a line for each that is over."""

    def __init__(self, board: str) -> None:
        self._board, self._name, self._since = board, "", 0.0
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        last = TextColumn("{task.fields[line]}", style="dim", markup=False)
        self._progress = Progress(*columns, last, console=errors, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        from host.boards.flow import FitError

        self._over(failed=error is not None and not isinstance(error, FitError))
        self._progress.stop()

    def _over(self, *, failed: bool = False) -> None:
        if self._task is None:
            return
        self._progress.remove_task(self._task)
        took = _clock(time.monotonic() - self._since)
        self._progress.console.print(
            f"{self._board}: {self._name} {'failed after ' if failed else ''}{took}", highlight=False
        )

    def begin(self, name: str) -> None:
        """A step begins; the one before is over."""
        self._over()
        self._name, self._since = name, time.monotonic()
        self._task = self._progress.add_task(f"{self._board}: {name}", total=None, line="")

    def line(self, text: str) -> None:
        """A tool has printed a line."""
        if self._task is not None:
            self._progress.update(self._task, line=text[:70])


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _expect(name: str, wanted: Any, clock: float) -> None:
    """Say beforehand what the committed table lets expect of such a clock."""
    from host.boards import table as committed

    if abs(clock - wanted.mhz) > 0.0005 * wanted.mhz:
        errors.print(f"the PLL's nearest clock to {wanted.mhz:g} MHz is {clock:.4g} MHz", highlight=False)
    entry = committed.load().get(name)
    if entry is None or not entry["fits"] or clock <= entry["fmax_mhz"]:
        return
    over = 100 * (clock / entry["fmax_mhz"] - 1)
    say(
        "warning",
        f"{clock:.4g} MHz is {over:.0f} % above the {entry['fmax_mhz']:g} MHz that place and route has reached: "
        "overclocked, errors are to be expected",
        "yellow",
    )


def _summary(report: dict[str, Any], folder: Path, seconds: float) -> None:
    used = ", ".join(f"{place['used']} of {place['of']} {kind}" for kind, place in report["utilisation"].items())
    console.print(f"wrote {folder / report['bitstream']['file']} in {_clock(seconds)}", highlight=False, soft_wrap=True)
    console.print(f"takes {used}", highlight=False, soft_wrap=True)
    console.print(
        f"clock {report['clock']['mhz']:g} MHz, place and route reaches {report['fmax_mhz']:g} MHz (slow corner)",
        highlight=False,
    )
