"""`redline bench cosim`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console
from host.cli.bench.app import bench_app


@bench_app.command("cosim")
def bench_cosim(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of the co-simulation against the bare Verilated model."""
    from host.bench import cosim

    result = cosim.measure()
    if as_json:
        print(json.dumps(result))
        return
    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)
