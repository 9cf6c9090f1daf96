"""`redline timing`: delay tables from place and route, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from host.cli.app import app, console, errors

timing_app = typer.Typer(help="Delay tables: make, show, validate.", no_args_is_help=True)
app.add_typer(timing_app, name="timing")

Seeds = Annotated[str, typer.Option("--seed", help="Placement seeds, separated by commas.", metavar="N[,N...]")]


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers", param_hint=option) from None


@timing_app.command("build")
def timing_build(
    seed: Seeds = "1,2,3",
    lanes: Annotated[int, typer.Option(help="Lanes of the array.")] = 16,
    vec: Annotated[int, typer.Option(help="Products a lane adds in a step.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; by default, those of Redline.")] = None,
) -> None:
    """Place and route the lanes and write their delay tables: minutes a seed for 16 x 8, once (a cache)."""
    from sim.timing import shipped
    from sim.timing.build import make_table
    from sim.timing.route import route

    for number in numbers(seed, "--seed"):
        with errors.status(f"seed {number}") as status:

            def note(message: str, number: int = number, status: Any = status) -> None:
                status.update(f"seed {number}: {message}", spinner=None)

            table = make_table(route(lanes, vec, number, progress=note))
        path = shipped.path(lanes, vec, number)
        path = path if out is None else out / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
        console.print(
            f"wrote {path}: static {table.static_fmax_mhz():.1f} MHz, accumulators "
            f"{table.static_fmax_mhz('accumulator'):.1f} MHz",
            highlight=False,
            soft_wrap=True,
        )
