"""`redline bench cycles`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console, errors
from host.cli.bench.app import bench_app


@bench_app.command("cycles")
def bench_cycles(
    cases: Annotated[int, typer.Option(min=1, help="Random networks on each accelerator and memory.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the networks.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """How well the cycle model predicts the RTL's cycles on random networks, accelerators and memories."""
    from host.bench import cycles

    with errors.status("building the simulators (once; some minutes)") as status:
        result = cycles.measure(cases, seed, progress=lambda what: status.update(what))
    if as_json:
        print(json.dumps(result))
        return
    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4%}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
