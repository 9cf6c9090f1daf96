"""`redline bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from host.cli.app import app, console, errors

bench_app = typer.Typer(help="Measure speeds.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command("cosim")
def bench_cosim(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of the co-simulation against the bare Verilated model."""
    from benchmarks import cosim

    result = cosim.measure()
    if as_json:
        print(json.dumps(result))
        return
    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)


@bench_app.command("overclock")
def bench_overclock(
    delays: Annotated[
        Path | None, typer.Option("--table", help="Delay table; by default one that comes with Redline.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """What the overclocking instrumentation costs in simulation, against the plain build."""
    from benchmarks import overclock
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


@bench_app.command("hardware")
def bench_hardware(
    arrays: Annotated[str, typer.Option(help="Arrays, lanes x vec, separated by commas.")] = "16x8,32x16",
    bytes_per_cycle: Annotated[int, typer.Option(min=1, help="Bandwidth of the memory.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Cycles of AlexNet's layers (16x8: on the RTL) and VGG-16's (modelled), beside the fewest an array could take."""
    from benchmarks import hardware

    results = []
    for array in arrays.split(","):
        if array not in hardware.ARRAYS:
            raise typer.BadParameter(
                f"no array {array!r}; there are {', '.join(hardware.ARRAYS)}", param_hint="--arrays"
            )
        with errors.status(f"{array}: starting (a first build takes a minute or two)") as status:

            def note(layer: str, array: str = array, status: Any = status) -> None:
                status.update(f"{array}: {layer}")

            if array in hardware.ON_RTL:
                results += hardware.measure(array, bytes_per_cycle=bytes_per_cycle, progress=note)
            else:
                results += hardware.model("alexnet", array, bytes_per_cycle=bytes_per_cycle)
            results += hardware.model("vgg16", array, bytes_per_cycle=bytes_per_cycle)
    if as_json:
        print(json.dumps(hardware.as_dict(results)))
        return
    table = Table("array", "layer", "batch", "from", "cycles", "model", "ideal", "ratio", title=results[0].memory)
    for row in results:
        figures = (f"{row.cycles:,}", f"{row.modelled:,}", f"{row.ideal:,}", f"{row.ratio:.3f}")
        source = "RTL, NOT EXACT" if row.exact is False else row.source
        table.add_row(row.array, f"{row.network} {row.layer}", str(row.batch), source, *figures)
    console.print(table)


@bench_app.command("emulator")
def bench_emulator(
    delays: Annotated[
        Path | None, typer.Option("--table", help="Delay table; by default that of the routed array, if it is there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of the emulator beside PyTorch's float32: AlexNet and VGG-16 forward, training steps; some minutes."""
    from benchmarks import emulator
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
