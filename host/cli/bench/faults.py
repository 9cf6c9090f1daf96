"""`redline bench faults`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import console, errors
from host.cli.bench.app import bench_app


@bench_app.command("faults")
def bench_faults(
    flips: Annotated[int, typer.Option(min=1, help="In each image.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Speed of fault injection beside PyTorchFI and MRFI: AlexNet with 1,000 flips an image; a minute.

    Needs both: pip install '.[comparison]'. What each models: docs/fault-benchmark.md.
    """
    from host.bench import faults

    with errors.status("starting") as status:
        result = faults.measure(status.update, flips=flips)
    if as_json:
        print(json.dumps(result))
        return
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    title = f"{result['network']}, {flips:,} flips an image; {result['kernels']}; {versions}"
    batches = [str(row["batch"]) for row in result["rows"]]
    table = Table("ms of processor time an image", *(f"batch {batch}" for batch in batches), title=title)
    for name in result["rows"][0]["ms_an_image"]:
        table.add_row(name.replace("_", " "), *(f"{row['ms_an_image'][name]:,.2f}" for row in result["rows"]))
    table.add_section()
    for ratio in faults.RATIOS:
        table.add_row(ratio.replace("_", " "), *(f"{row[ratio]:.2f}" for row in result["rows"]))
    console.print(table)
    for name, models in result["models"].items():
        console.print(f"{name}: {models}", highlight=False)
