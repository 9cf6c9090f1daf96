"""`redline bench emulator`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console, errors
from host.cli.bench.app import bench_app


@bench_app.command("emulator")
def bench_emulator(
    delays: Annotated[
        Path | None, typer.Option("--table", help="Delay table; by default that of the routed array, if it is there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of the emulator beside PyTorch's float32: AlexNet and VGG-16 forward, training steps; some minutes."""
    from host.bench import emulator
    from hw.delays import Table as DelayTable

    with errors.status("starting") as status:
        result = emulator.measure(status.update, None if delays is None else DelayTable.load(delays))
    if as_json:
        print(json.dumps(result))
        return
    title = f"{result['kernels']}; delay table: {result['table']}; ms of processor time"
    table = Table("network", "batch", "fp32", "clean", "overclocked", "1e-6 flips a MAC", "fp32 / clean", title=title)
    for row in result["forward"]:
        times = [f"{row[key]:,.1f}" for key in ("fp32_ms", "clean_ms", "overclock_ms", "sparse_ms")]
        table.add_row(row["network"], str(row["batch"]), *times, f"{row['fp32_over_clean']:.2f}")
    console.print(table)
    table = Table("network", "batch", "fp32 step", "int8 step", "int8 / fp32")
    for row in result["steps"]:
        times = [f"{row[key]:,.1f}" for key in ("fp32_ms", "int8_ms")]
        table.add_row(row["network"], str(row["batch"]), *times, f"{row['step_over_fp32']:.2f}")
    console.print(table)
    table = Table("AlexNet at period / safe", "groups of late bits", "ms", "fp32 / overclocked")
    for row in result["deeper"]:
        groups = ", ".join(f"{bank} {count}" for bank, count in row["groups"].items())
        table.add_row(f"{row['period_of_safe']:.2f}", groups, f"{row['ms']:,.1f}", f"{row['fp32_over_overclock']:.2f}")
    console.print(table)
