"""`redline compile`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from host.cli import networks
from host.cli.app import DataDir, app, fail
from host.cli.networks import short_figure

if TYPE_CHECKING:
    from host.compiler.report import LayerCost


@app.command("compile")
def compile_command(
    net: Annotated[str, typer.Argument(help="Network of redline.models.", metavar="NET")] = "lenet5",
    report: Annotated[
        bool, typer.Option("--report", help="Also cycles, bytes, buffers, fractions, and why it runs where.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(help="Save the Program here.")] = None,
    weights: networks.Weights = None,
    photos: networks.Photos = None,
    lanes: networks.Lanes = 16,
    vec: networks.Vec = 8,
    feature_bytes: networks.FeatureBytes = 65536,
    weight_bytes: networks.WeightBytes = 65536,
    pool_columns: networks.PoolColumns = 64,
    port_bits: networks.PortBits = None,
    batch: networks.Batch = 1,
    bytes_per_cycle: networks.BytesPerCycle = None,
    latency: networks.Latency = 32,
    writeback: networks.WriteBack = False,
    fallback: networks.Fallback = "error",
    per_channel: Annotated[bool, typer.Option("--per-channel", help="Weight fractions per channel.")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Calibration images; by default 512, or 16 photos.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Compile a network for the accelerator and show its layers; figures are of one image."""
    from host import models
    from host.compiler import report as compile_report

    if weights is None and net in models.MODELS and net not in models.SHIPPED and out is not None:
        raise typer.Exit(fail(f"no weights of {net} come with Redline; name a file with --weights to save a Program"))
    config, memory = networks.configuration(
        lanes, vec, feature_bytes, weight_bytes, pool_columns, port_bits, bytes_per_cycle, latency
    )
    program = networks.compiled(
        net,
        config,
        weights=weights,
        photos=photos,
        fallback=fallback,
        per_channel=per_channel,
        images=images,
        data_dir=data_dir,
    )
    layers = compile_report.costs(program, memory, batch=batch, writeback=writeback)
    if out is not None:
        program.save(out)
    if as_json:
        print(json.dumps(compile_report.as_dict(net, program, layers)))
        return
    console = networks.wide()
    console.print(_long(net, layers) if report else _short(net, layers))
    if report:
        for line in _explained(layers):
            console.print(line, highlight=False, markup=False)
        console.print(compile_report.headline(layers, config), highlight=False)
    if out is not None:
        console.print(f"wrote {out}")


def _short(net: str, layers: Sequence[LayerCost]) -> Table:
    table = _table(net, ("layer", "input", "output", "kernel"), ("MACs", "steps"), ("fractions", "runs on"))
    for cost in layers:
        shape = "x".join(map(str, cost.input)) + (" (folded)" if cost.folded else "")
        cells = [cost.name, shape, "x".join(map(str, cost.output)), "x".join(map(str, cost.kernel))]
        table.add_row(*cells, f"{cost.macs:,}", f"{cost.steps:,}", _fractions(cost), cost.runs_on)
    return table


def _long(net: str, layers: Sequence[LayerCost]) -> Table:
    from host.compiler.report import operator_words

    figures = ("MACs", "cycles", "busy", "fill", "read", "wrote")
    table = _table(net, ("#", "layer", "operator", "reads", "output"), figures, ("fractions", "where"))
    numbers = {cost.name: number for number, cost in enumerate(layers, 1)}
    for cost in layers:
        sources = ", ".join(str(numbers.get(source, source)) for source in cost.sources[:3])
        sources += f" +{len(cost.sources) - 3}" if len(cost.sources) > 3 else ""
        cells = [str(numbers[cost.name]), cost.name, operator_words(cost), sources, "x".join(map(str, cost.output))]
        cells.append(short_figure(cost.macs))
        if cost.cycles is None or cost.busy is None or cost.bytes_read is None or cost.bytes_written is None:
            cells += [""] * 5
        else:
            moved = (short_figure(cost.bytes_read), short_figure(cost.bytes_written))
            cells += [short_figure(cost.cycles), f"{cost.busy:.0%}", f"{cost.utilisation:.0%}", *moved]
        table.add_row(*cells, _fractions(cost), "CPU" if cost.buffers is None else str(cost.buffers))
    return table


def _table(net: str, names: Sequence[str], figures: Sequence[str], words: Sequence[str]) -> Table:
    table = Table(title=net, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in (*names, *figures, *words):
        if heading in figures:
            table.add_column(heading, no_wrap=True, justify="right")
        else:
            table.add_column(heading, overflow="fold", no_wrap=heading == "layer")
    return table


def _explained(layers: Sequence[LayerCost]) -> list[str]:
    """What the columns mean, and why layers run where they do: a line a reason."""
    lines = [
        "Figures are of one image. reads: the rows it takes its input from. MACs: the layer's own. busy: share of the",
        "cycles in which the array steps; fill: share of its multipliers that then work on the layer's own products.",
        "read, wrote: bytes. fractions: in, weight, out. where: mem>A>B is from memory to buffer A, output to B;",
        "4x: in four bands of rows.",
    ]
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cost in layers:
        reasons[cost.runs_on, cost.why].append(cost.name)
    for (place, why), names in reasons.items():
        where = "on the CPU" if place == "cpu" else "on the accelerator"
        few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{where}, {why}: {few}")
    return lines


def _fractions(cost: LayerCost) -> str:
    low, high = cost.weight_fracs
    return f"{cost.in_frac},{low if low == high else f'{low}..{high}'},{cost.out_frac}"
