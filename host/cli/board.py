"""`redline board`: boards behind a serial line."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from host.cli.app import app, console
from host.cli.conformance import parsed

board_app = typer.Typer(help="Boards behind a serial line.", no_args_is_help=True)
app.add_typer(board_app, name="board")


@board_app.command("simulate")
def simulate(
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of its accelerator, e.g. lanes=4, or board=ulx3s-85f.", metavar="KEY=VALUE"),
    ] = None,
    memory_bytes: Annotated[
        int | None,
        typer.Option(min=4096, help="Its on-chip memory, a multiple of 4096. By default the board's, or 131072."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Run a board in simulation, its serial line a pseudo-terminal, until Ctrl-C.

    Whatever speaks to a board through a serial port can speak to this one.
    """
    from host.devices.registry import accelerator
    from host.devices.serial.device import SIMULATED_BYTES
    from hw.boards.catalogue import find
    from hw.config import Config
    from sim.board import SimulatedBoard
    from sim.client import SimulatorError

    named = parsed(option or [])
    own, rest = accelerator(named)
    if rest:
        raise typer.BadParameter(f"no accelerator has {', '.join(rest)}", param_hint="--option")
    if memory_bytes is None:
        memory_bytes = find(named["board"]).memory_bytes if "board" in named else SIMULATED_BYTES
    board = SimulatedBoard(Config(**own), memory_bytes)
    try:
        if as_json:
            print(json.dumps({"port": board.path, "baud": board.baud, "pid": board.pid}), flush=True)
        else:
            given = "".join(f", {key}={value!r}" for key, value in named.items())
            console.print(f"a board is at {board.path}, in Python:", highlight=False)
            console.print(f'  redline.device("serial", port="{board.path}"{given})', highlight=False, markup=False)
            console.print("Ctrl-C ends it", highlight=False)
        board.process.wait()
        raise SimulatorError(f"the simulated board has ended\nits log: {board.log or '(empty)'}")
    finally:
        board.close()
