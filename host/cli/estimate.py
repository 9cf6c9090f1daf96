"""`redline estimate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from host.cli import networks
from host.cli.app import app, fail
from host.cli.networks import short_figure

if TYPE_CHECKING:
    from host.performance_report import Comparison
    from host.program.program import Program
    from host.schedule.cycles import Memory
    from host.schedule.performance import Performance
    from hw.config import Config


@app.command()
def estimate(
    net: Annotated[
        str, typer.Argument(help="Network of redline.models, or a file that 'redline compile --out' saved.")
    ] = "lenet5",
    mhz: Annotated[float | None, typer.Option(help="Clock. [default: 200, or the board's]")] = None,
    board: Annotated[
        str | None, typer.Option(help="A board's accelerator, memory and clock, instead of the options for these.")
    ] = None,
    batch: networks.Batch = 16,
    writeback: networks.WriteBack = False,
    lanes: networks.Lanes = 16,
    vec: networks.Vec = 8,
    feature_bytes: networks.FeatureBytes = 65536,
    weight_bytes: networks.WeightBytes = 65536,
    pool_columns: networks.PoolColumns = 64,
    port_bits: networks.PortBits = None,
    bytes_per_cycle: networks.BytesPerCycle = None,
    latency: networks.Latency = 100,
    fallback: networks.Fallback = "error",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for roofline.png, roofline.svg, layers.csv and estimate.json.")
    ] = None,
) -> None:
    """How many images a second at this clock, and what binds each layer: from the cycle model, without simulating.

    A saved Program brings its accelerator along: options of the array and its buffers are not looked at then.
    """
    from host import performance_report
    from host.schedule.performance import predict

    if mhz is not None and not mhz > 0:
        raise typer.Exit(fail(f"--mhz must be positive, not {mhz:g}"))
    if board is None:
        config, memory = networks.configuration(
            lanes, vec, feature_bytes, weight_bytes, pool_columns, port_bits, bytes_per_cycle, latency
        )
        mhz = mhz or 200.0
    else:
        config, memory, usual = _board(board)
        mhz = mhz or usual
    if Path(net).is_file():
        program, memory = _saved(Path(net), latency, bytes_per_cycle)
        name = Path(net).stem
    else:
        program, name = networks.compiled(net, config, fallback=fallback, values_matter=False), net
    if not any(layer.placement == "accelerator" for layer in program.layers):
        raise typer.Exit(fail(f"no layer of {name} runs on the accelerator: there is nothing to estimate"))
    chained = predict(program, memory, batch=batch)
    written = predict(program, memory, batch=batch, writeback=True)
    found = performance_report.Comparison(name, mhz, written if writeback else chained, chained, written)
    if out is not None:
        performance_report.write(out, found)
    if as_json:
        print(json.dumps(performance_report.as_dict(found)))
        return
    console = networks.wide()
    console.print(_layers(found.shown, name))
    for line in performance_report.summary(found):
        console.print(line, highlight=False, markup=False)
    console.print(_modes(found))
    if out is not None:
        console.print(f"wrote {', '.join(str(out / file) for file in performance_report.FILES)}", highlight=False)


def _board(name: str) -> tuple[Config, Memory, float]:
    from host.boards.memory import on_chip
    from hw.boards.board import BoardError
    from hw.boards.catalogue import find

    try:
        board = find(name)
    except BoardError as error:
        raise typer.Exit(fail(str(error))) from error
    return board.config, on_chip(board.config), board.mhz


def _saved(path: Path, latency: int, bytes_per_cycle: float | None) -> tuple[Program, Memory]:
    from host.program.program import Program
    from host.schedule.cycles import Memory

    program = Program.load(path)
    if bytes_per_cycle is not None and bytes_per_cycle > program.config.port_bytes:
        raise typer.Exit(
            fail(
                f"{path}: its memory port carries {program.config.port_bytes} bytes a cycle, --bytes-per-cycle says "
                f"{bytes_per_cycle:g}: give a lower one, or compile the network with a wider port (--port-bits)"
            )
        )
    return program, Memory(latency, bytes_per_cycle)


def _layers(shown: Performance, name: str) -> Table:
    title = f"{name}, batch {shown.batch}, {'write-back' if shown.writeback else 'chained on chip'}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("cycles", "share", "ideal", "busy", "roofline", "read", "wrote", "MAC/byte", "MAC/cycle"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bound")
    for layer in shown.layers:
        table.add_row(
            layer.name,
            f"{layer.cycles / shown.batch:,.0f}",
            f"{layer.cycles / shown.cycles:.1%}",
            f"{layer.steps / shown.batch:,.0f}",
            f"{layer.busy:.0%}",
            f"{layer.fewest / layer.cycles:.0%}",
            short_figure(layer.traffic.read / shown.batch),
            short_figure(layer.traffic.written / shown.batch),
            f"{layer.intensity:,.1f}",
            f"{layer.macs / layer.cycles:.1f}",
            layer.bound,
        )
    return table


def _modes(found: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("an image")
    for heading in ("cycles", "images/s", "GMAC/s", "busy", "bytes read", "bytes written"):
        table.add_column(heading, justify="right")
    for words, mode in (("chained on chip", found.chained), ("write-back", found.written)):
        table.add_row(
            words,
            f"{mode.cycles_per_image:,.0f}",
            f"{mode.images_per_second(found.mhz):,.1f}",
            f"{mode.gmacs_per_second(found.mhz):,.2f}",
            f"{mode.busy:.1%}",
            f"{mode.traffic.read / mode.batch:,.0f}",
            f"{mode.traffic.written / mode.batch:,.0f}",
        )
    return table
