"""`redline verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from host.cli.app import app, console, errors


@app.command()
def verify(
    devices: Annotated[str, typer.Option(help="Devices to compare; the first is believed.")] = "reference,simulation",
    cases: Annotated[int, typer.Option(min=1, help="Random cases.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    first_case: Annotated[int, typer.Option(min=0, help="Number of the first case: to repeat one that failed.")] = 0,
    faults: Annotated[
        str, typer.Option(help='"soft": random soft errors; "overclock": late and stuck bits, too.')
    ] = "soft",
    table: Annotated[
        list[Path] | None,
        typer.Option(help="Delay tables to use beside random ones; by default those that come with Redline."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Prove on random networks, parameters and fault plans that devices give the same bytes.

    Status 1 if they do not; then the first divergence is shown.
    """
    from rich.progress import Progress

    from host.devices.registry import device_names
    from host.verification.verify import verify as run
    from hw.delays import Table
    from sim.timing import shipped

    names = [name.strip() for name in devices.split(",")]
    for name in names:
        if name not in device_names():
            raise typer.BadParameter(
                f"no device {name!r}; there are {', '.join(device_names())}", param_hint="--devices"
            )
    if len(names) < 2:
        raise typer.BadParameter("give at least two, separated by commas", param_hint="--devices")
    if faults not in ("soft", "overclock"):
        raise typer.BadParameter(f"there are soft and overclock, not {faults!r}", param_hint="--faults")
    if table and faults != "overclock":
        raise typer.BadParameter("delay tables are for --faults overclock", param_hint="--table")
    tables = [Table.load(path) for path in table or sorted(shipped.FOLDER.glob("*.json"))]
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("cases", total=cases)
        result = run(
            names,
            cases,
            seed,
            first_case=first_case,
            overclock=faults == "overclock",
            tables=tables,
            progress=lambda done, _: progress.update(task, completed=done),
        )
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        console.print(str(result), highlight=False, markup=False)
    if not result.ok:
        raise typer.Exit(1)
