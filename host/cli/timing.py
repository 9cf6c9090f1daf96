"""`redline timing`: delay tables from place and route, and what they are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table as Rows
from rich.text import Text

from host.cli.app import DataDir, app, console, errors, fail

timing_app = typer.Typer(help="Delay tables: make, show, validate.", no_args_is_help=True)
app.add_typer(timing_app, name="timing")

Seeds = Annotated[str, typer.Option("--seed", help="Placement seeds, separated by commas.", metavar="N[,N...]")]


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers", param_hint=option) from None


@timing_app.command("build")
def timing_build(
    seed: Seeds = "1,2,3",
    lanes: Annotated[int, typer.Option(help="Lanes of the array.")] = 16,
    vec: Annotated[int, typer.Option(help="Products a lane adds in a step.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; by default, those of Redline.")] = None,
) -> None:
    """Place and route the lanes and write their delay tables: minutes a seed for 16 x 8, once (a cache)."""
    from sim.timing import shipped
    from sim.timing.build import make_table
    from sim.timing.route import route

    for number in numbers(seed, "--seed"):
        with errors.status(f"seed {number}") as status:

            def note(message: str, number: int = number, status: Any = status) -> None:
                status.update(escape(f"seed {number}: {message}"), spinner=None)

            table = make_table(route(lanes, vec, number, progress=note))
        path = shipped.path(lanes, vec, number)
        path = path if out is None else out / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
        console.print(
            f"wrote {path}: static {table.static_fmax_mhz():.1f} MHz, accumulators "
            f"{table.static_fmax_mhz('accumulator'):.1f} MHz",
            highlight=False,
            soft_wrap=True,
        )


@timing_app.command("show")
def timing_show(
    tables: Annotated[
        list[Path] | None, typer.Argument(help="Tables; by default, those of Redline.", metavar="[TABLE]...")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of each operand stream.")] = 1000,
    static: Annotated[bool, typer.Option("--static", help="No operand streams: only what the table says.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Per bank: static limit, dynamic limit (first error on operands of LeNet-5's layers), and onset of errors."""
    from hw.delays import Table
    from sim.timing import shipped
    from sim.timing.dynamics import RATES, Dynamics
    from sim.timing.harness import source_hash

    paths = tables or [shipped.path(seed=seed) for seed in shipped.SEEDS]
    result: list[dict[str, Any]] = []
    for path in paths:
        table = Table.load(path)
        lanes, vec = len(table.lanes), table.vec
        onsets = {}
        if not static:
            from host.operands import lenet_streams

            with errors.status(escape(f"{path.name}: operands, then periods")):
                onsets = {
                    onset.bank: onset for onset in Dynamics(table, lenet_streams(lanes, vec, steps, data_dir)).onsets()
                }
        banks = {}
        for name in ("array", *table.reported_ps):
            fmax = table.static_fmax_mhz(None if name == "array" else name)
            entry: dict[str, Any] = {"static_ps": round(1e6 / fmax), "static_mhz": round(fmax, 2)}
            entry["nextpnr_ps"] = max(table.reported_ps.values()) if name == "array" else table.reported_ps[name]
            if name in onsets:
                entry["dynamic_ps"] = onsets[name].dynamic_ps
                entry["rates_ps"] = {str(rate): onsets[name].rates_ps[rate] for rate in RATES}
            banks[name] = entry
        result.append(
            {
                "table": path.name,
                "hash": table.hash,
                "lanes": lanes,
                "vec": vec,
                "seed": table.seed,
                "part": f"{table.part}-{table.speed_grade} {table.package}",
                "tools": dict(table.tools),
                "of_this_gateware": source_hash(lanes, vec) == table.source_sha256,
                "banks": banks,
                "unmodelled": {
                    name: {"period_ps": limit.period_ps, "reason": limit.reason}
                    for name, limit in table.unmodelled.items()
                },
            }
        )
    if as_json:
        print(json.dumps({"tables": result}))
        return
    for shown in result:
        headings = ["bank", "longest path, ps", "nextpnr, ps", "static MHz"]
        headings += [] if static else ["first error, ps", *(f"{100 * rate:.0f} % wrong, ps" for rate in RATES)]
        rows = Rows(*headings, title=f"{shown['table']}: {shown['lanes']}x{shown['vec']}, {shown['part']}")
        for name, entry in shown["banks"].items():
            cells = [name, str(entry["static_ps"]), str(entry["nextpnr_ps"]), f"{entry['static_mhz']:.1f}"]
            if not static:
                cells += [str(entry["dynamic_ps"]), *(str(period) for period in entry["rates_ps"].values())]
            rows.add_row(*cells)
        console.print(rows)
        for name, limit in shown["unmodelled"].items():
            period = "no figure" if limit["period_ps"] is None else f"{limit['period_ps']} ps"
            console.print(f"not modelled: {name}, {period} ({limit['reason']})", highlight=False, soft_wrap=True)
        if not shown["of_this_gateware"]:
            console.print(
                Text.assemble(
                    ("note:", "yellow"), " made from other gateware than this; make it anew: redline timing build"
                )
            )


@timing_app.command("validate")
def timing_validate(
    seed: Seeds = "1,2,3",
    array_lanes: Annotated[int, typer.Option("--lanes", help="Lanes of the array.")] = 16,
    vec: Annotated[int, typer.Option(help="Products a lane adds in a step.")] = 8,
    sampled: Annotated[int, typer.Option(min=1, help="Lanes simulated of each placement.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Of each operand stream.")] = 2000,
    docs: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose timing.md gets the table and the plot; without it ./docs, if that is Redline's."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Compare the capture formula with a gate-level simulation of the routed netlist, on LeNet-5's operands."""
    from host import timing
    from host.operands import lenet_streams
    from hw.delays import DelayError, Table
    from sim.timing import shipped, validate
    from sim.timing.build import make_table
    from sim.timing.oracle import find_icarus
    from sim.timing.route import route

    if docs is not None:
        timing.check_page(docs)
    elif timing.has_page(Path("docs")):
        docs = Path("docs")
    find_icarus()
    with errors.status("operands") as status:

        def note(message: str) -> None:
            status.update(escape(message))

        placements = [route(array_lanes, vec, number, progress=note) for number in numbers(seed, "--seed")]
        tables = [make_table(placement) for placement in placements]
        for table in tables:
            path = shipped.path(array_lanes, vec, table.seed)
            if path.exists() and Table.load(path) != table:
                raise DelayError(f"{path} is not what place and route gives now; make it anew: redline timing build")
        note("operands")
        streams = lenet_streams(array_lanes, vec, steps, data_dir)
        points = validate.sweep(placements, tables, streams, lanes=sampled, fractions=validate.FRACTIONS, progress=note)
    summary = validate.summary(points)
    if docs is not None:
        timing.write(docs, points, summary)
    if as_json:
        print(json.dumps(summary))
        raise typer.Exit(0 if summary["accepted"] else 1)
    console.print(timing.markdown(points, summary), highlight=False, markup=False, soft_wrap=True)
    if docs is not None:
        console.print(f"wrote {docs / timing.PAGE} and {docs / timing.PLOT}")
    if not summary["accepted"]:
        raise typer.Exit(fail("the model misses what a validation must reach"))
