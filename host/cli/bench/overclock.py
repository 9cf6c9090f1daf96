"""`redline bench overclock`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console
from host.cli.bench.app import bench_app


@bench_app.command("overclock")
def bench_overclock(
    delays: Annotated[
        Path | None, typer.Option("--table", help="Delay table; by default one that comes with Redline.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """What the overclocking instrumentation costs in simulation, against the plain build."""
    from host.bench import overclock
    from hw.delays import Table as DelayTable

    result = overclock.measure(table=None if delays is None else DelayTable.load(delays))
    if as_json:
        print(json.dumps(result))
        return
    title = f"plain build: {result['plain_cycles_per_second']:,} cycles a second"
    table = Table("period", "of the safe one", "cycles a second", "ratio", "late banks (groups)", title=title)
    for clock in result["clocks"]:
        period, share = clock["period_ps"], clock["share"]
        banks = ", ".join(f"{name} {groups}" for name, groups in clock["groups"].items())
        table.add_row(
            "none" if period is None else f"{period} ps",
            "" if share is None else f"{share:.0%}",
            f"{clock['cycles_per_second']:,}",
            f"{clock['ratio']:.3f}",
            banks,
        )
    console.print(table)
