"""`redline bench opencl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console
from host.cli.bench.app import bench_app


@bench_app.command("opencl")
def bench_opencl(
    platform: Annotated[str | None, typer.Option(help="Part of the platform's name.")] = None,
    device_name: Annotated[str | None, typer.Option(help="Part of the device's name.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a timeline of overlapping transfers here (.png).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of the opencl device against the other devices, cost of a launch, transfers hidden behind computing."""
    from host.devices.registry import device_class

    device_class("opencl")  # says what is missing, if something is
    from host.bench import opencl

    result, spans = opencl.measure(platform=platform, device_name=device_name)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        opencl.plot(spans, plot)
    if as_json:
        print(json.dumps(result))
        return
    table = Table(show_header=False)
    for key, value in result.items():
        for name, figure in value.items() if isinstance(value, dict) else [("", value)]:
            row = f"{key} {name}".rstrip()
            table.add_row(row, f"{figure:,.4g}" if isinstance(figure, float) else str(figure))
    console.print(table)
