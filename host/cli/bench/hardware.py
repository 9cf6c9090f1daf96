"""`redline bench hardware`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from host.cli.app import console, errors
from host.cli.bench.app import bench_app


@bench_app.command("hardware")
def bench_hardware(
    arrays: Annotated[str, typer.Option(help="Arrays, lanes x vec, separated by commas.")] = "16x8,32x16",
    bytes_per_cycle: Annotated[int, typer.Option(min=1, help="Bandwidth of the memory.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Cycles of AlexNet's layers (on the RTL) and VGG-16's (modelled), beside the fewest an array could take."""
    from host.bench import hardware

    results = []
    for array in arrays.split(","):
        if array not in hardware.ARRAYS:
            raise typer.BadParameter(
                f"no array {array!r}; there are {', '.join(hardware.ARRAYS)}", param_hint="--arrays"
            )
        with errors.status(f"{array}: starting (a first build takes a minute or two)") as status:

            def note(layer: str, array: str = array, status: Any = status) -> None:
                status.update(f"{array}: {layer}")

            results += hardware.measure(array, bytes_per_cycle=bytes_per_cycle, progress=note)
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
