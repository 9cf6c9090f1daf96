"""`redline kernel`: the accelerator as an RTL kernel for Vitis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from host.cli import networks
from host.cli.app import app, console, errors, fail
from hw.vitis.boards import BOARDS, DEFAULT_MHZ


@app.command()
def kernel(
    out: Annotated[Path, typer.Option(help="Folder for the package.")],
    board: Annotated[str, typer.Option(help=f"Alveo board: {', '.join(BOARDS)}.")] = "u250",
    mhz: Annotated[int, typer.Option(help="Clock to ask v++ for.")] = DEFAULT_MHZ,
    keep_clock: Annotated[
        bool, typer.Option("--keep-clock", help="Overclock: v++ must not lower the clock when timing fails.")
    ] = False,
    units: Annotated[int, typer.Option(help="Compute units.")] = 1,
    lanes: networks.Lanes = 16,
    vec: networks.Vec = 8,
    feature_bytes: networks.FeatureBytes = 65536,
    weight_bytes: networks.WeightBytes = 65536,
    pool_columns: networks.PoolColumns = 64,
    port_bits: Annotated[
        int | None,
        typer.Option(help="Width of the memory port; by default 128, if the array allows.", show_default=False),
    ] = None,
    arithmetic: Annotated[str, typer.Option(help="How sums become outputs.", metavar="redline|pipecnn")] = "redline",
    saboteur: Annotated[bool, typer.Option("--saboteur", help="With hardware that flips bits on demand.")] = False,
    overclock: Annotated[
        int, typer.Option(help="With hardware that imitates late bits: room for this many groups a register bank.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Write what Vitis needs to make a board's binary for the opencl device: Verilog, kernel.xml, Tcl, link options.

    No vendor tool is needed here, and none has seen the result: README.md in the folder says what was verified.
    """
    from hw.vitis.package import contents, write

    if board not in BOARDS:
        raise typer.Exit(fail(f"no board {board!r}; there are {', '.join(BOARDS)}"))
    config, _ = networks.configuration(
        lanes, vec, feature_bytes, weight_bytes, pool_columns, port_bits, bytes_per_cycle=None, latency=0
    )
    config = replace(config, arithmetic=arithmetic, saboteur=saboteur, overclock=overclock)
    with errors.status("converting the accelerator to Verilog"):
        files = contents(config, BOARDS[board], mhz=mhz, units=units, keep_clock=keep_clock)
    paths = write(out, files)
    if as_json:
        found = {"config_hash": f"{config.hash:#018x}", "platform": BOARDS[board].platform, "mhz": mhz, "units": units}
        print(json.dumps({**found, "files": [str(path) for path in paths]}))
        return
    console.print(f"wrote {', '.join(path.name for path in paths)} to {out}", highlight=False, soft_wrap=True)
    console.print(f"next: {out / 'README.md'} has the commands for Vitis", highlight=False, soft_wrap=True)
