"""The command line: `redline COMMAND`."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# Two threads on two busy cores are slower than one; devices and campaigns use processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    help="Train neural networks on the accelerator that will run them, while it makes errors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Measure speeds.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

console = Console()
errors = Console(stderr=True)

DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the four IDX files (also: REDLINE_DATA).", metavar="DIR")
]


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Look whether this machine has what Redline needs; says how to mend what is missing."""
    from host.doctor import examine

    marks = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    with console.status("looking"):
        findings = examine(data_dir)
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, finding.found)
        if finding.remedy:
            table.add_row("", "", f"[bold]{finding.remedy}[/]")
    console.print(table)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if missing:
        raise typer.Exit(_fail(f"missing: {', '.join(missing)}"))
    console.print("Everything needed is there.")


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="Name of the run: results go to OUT/NAME.")] = "demo",
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    device: Annotated[
        str, typer.Option(help="simulation (the RTL) or reference (the same bytes, no RTL).")
    ] = "simulation",
    rates: Annotated[
        str, typer.Option(help="Soft errors per MAC, one or more.", metavar="R,R,...")
    ] = "0.0003,0.001,0.003",
    test_images: Annotated[int, typer.Option(min=1, max=10_000, help="Images of each evaluation.")] = 2000,
    train_images: Annotated[int, typer.Option(min=64, help="Images of each retraining.")] = 8192,
    lr: Annotated[float, typer.Option(help="Learning rate of retraining.")] = 0.03,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    units: Annotated[int, typer.Option(min=1, help="Simulator processes.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on an interrupted run to go on with.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what the folder holds.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Damage a LeNet-5 on a faulty accelerator, retrain it there, and report.

    An interrupted run of the same name and settings goes on where it stopped.
    """
    from host import demo as demo_module

    folder = out / name
    if resume and restart:
        raise typer.Exit(_fail("say --resume or --restart, not both"))
    if resume and not (folder / "config.json").exists():
        raise typer.Exit(_fail(f"{folder}: no run to resume"))
    if (folder / "report.html").exists() and not restart:
        console.print(f"{folder} holds a finished run; showing it (use --restart to run anew).")
    settings = demo_module.Settings(
        device=device,
        units=units,
        rates=_rates(rates),
        test_images=test_images,
        train_images=train_images,
        lr=lr,
        seed=seed,
    )
    try:
        summary = demo_module.run(folder, settings, data_dir=data_dir, restart=restart, console=console)
    except KeyboardInterrupt as stopped:
        errors.print(f"interrupted{f' ({stopped})' if str(stopped) else ''}; the same command goes on from here")
        raise typer.Exit(130) from None
    _show(summary, folder)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint="--rates") from None
    if any(not 0 < rate < 1 for rate in rates) or len(set(rates)) != len(rates):
        raise typer.BadParameter("rates must differ and lie between 0 and 1", param_hint="--rates")
    return rates


def _show(summary: Any, folder: Path) -> None:
    from host import report

    head, body = report.short_table(summary)
    table = Table(title=summary.title, title_justify="left")
    for column in head:
        table.add_column(column)
    before = None
    for row in body:
        if before is not None and row[0] != before:
            table.add_section()
        before = row[0]
        table.add_row(*row)
    console.print(table)
    for line in report.headline(summary):
        console.print(line)
    console.print(report.writeback_words(summary))
    console.print(
        f"Report: {folder / 'report.html'} (browser), {folder / 'report.md'} (text), {folder / 'results.csv'}"
    )


@app.command()
def verify(
    devices: Annotated[str, typer.Option(help="Devices to compare; the first is believed.")] = "reference,simulation",
    cases: Annotated[int, typer.Option(min=1, help="Random cases.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    first_case: Annotated[int, typer.Option(min=0, help="Number of the first case: to repeat one that failed.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Prove on random networks, parameters and fault plans that devices give the same bytes.

    Status 1 if they do not; then the first divergence is shown.
    """
    from rich.progress import Progress

    from host.devices.registry import device_names
    from host.verification.verify import verify as run

    names = [name.strip() for name in devices.split(",")]
    for name in names:
        if name not in device_names():
            raise typer.BadParameter(
                f"no device {name!r}; there are {', '.join(device_names())}", param_hint="--devices"
            )
    if len(names) < 2:
        raise typer.BadParameter("give at least two, separated by commas", param_hint="--devices")
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("cases", total=cases)
        result = run(
            names, cases, seed, first_case=first_case, progress=lambda done, _: progress.update(task, completed=done)
        )
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        console.print(str(result), highlight=False, markup=False)
    if not result.ok:
        raise typer.Exit(1)


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


@app.command()
def pretrain(
    out: Annotated[Path | None, typer.Option(help="File to write; by default the one that comes with Redline.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    data_dir: DataDir = None,
) -> None:
    """Train LeNet-5 in float on Fashion-MNIST: the starting point of the demo."""
    import torch

    from host.training.pretrain import pretrain as run

    torch.set_num_threads(1)
    run(out, epochs=epochs, seed=seed, data_dir=data_dir, console=console)


@app.command("compile")
def compile_command(
    net: Annotated[str, typer.Argument(help="Network of redline.models.", metavar="NET")] = "lenet5",
    report: Annotated[bool, typer.Option("--report", help="Also bytes, utilisation, where and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(help="Save the Program here.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The network's .pth or .safetensors file.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Calibration images of networks for photos: a folder of images for each class.")
    ] = None,
    lanes: Annotated[int, typer.Option()] = 16,
    vec: Annotated[int, typer.Option()] = 8,
    feature_bytes: Annotated[int, typer.Option(help="Bytes of each of the two feature buffers.")] = 65536,
    weight_bytes: Annotated[int, typer.Option(help="Bytes of the weight ring.")] = 65536,
    pool_columns: Annotated[int, typer.Option(help="Longest pooled row, pixels.")] = 64,
    fallback: Annotated[
        str, typer.Option(help="Layers that do not fit: error, or cpu (the same integers there).", metavar="error|cpu")
    ] = "error",
    per_channel: Annotated[bool, typer.Option("--per-channel", help="Weight fractions per channel.")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Calibration images; by default 512, or 16 photos.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Compile a network for the accelerator and show its layers."""
    from host import models
    from host.compiler import report as compile_report
    from host.compiler.compile import compile as compile_network
    from host.datasets import data, imagenet
    from hw.config import Config

    if net not in models.MODELS:
        raise typer.Exit(_fail(f"no network {net!r}; there are {', '.join(models.MODELS)}"))
    if fallback not in ("error", "cpu"):
        raise typer.Exit(_fail(f"--fallback is error or cpu, not {fallback!r}"))
    small = net in models.GREY
    if small and photos is not None:
        raise typer.Exit(_fail(f"{net} takes images of 28x28 pixels; name their folder with --data-dir, not --photos"))
    config = Config(
        lanes=lanes, vec=vec, feature_bytes=feature_bytes, weight_bytes=weight_bytes, pool_columns=pool_columns
    )
    notes = []
    if weights is None and net not in models.SHIPPED:
        if out is not None:
            raise typer.Exit(
                _fail(f"no weights of {net} come with Redline; name a file with --weights to save a Program")
            )
        notes.append("weights are random (--weights)")
    network = models.MODELS[net](pretrained=weights or net in models.SHIPPED)
    if small:
        calibrate = data.load("fashion-mnist", "train", data_dir).head(images or 512).pixels
    elif photos is not None:
        calibrate = imagenet.load(photos).spread(images or 16).pixels
    else:
        import torch

        calibrate = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        notes.append("calibration is on noise (--photos)")
    program = compile_network(
        network, config, calibrate=calibrate, per_channel=per_channel, fallback="cpu" if fallback == "cpu" else "error"
    )
    if notes:
        errors.print(
            f"[yellow]note:[/] {' and '.join(notes)}: the fractions mean nothing, all else holds", soft_wrap=True
        )
    layers = compile_report.costs(program)
    if out is not None:
        program.save(out)
    if as_json:
        print(json.dumps(compile_report.as_dict(net, program)))
        return
    headings = ["layer", "input", "output", "kernel", "MACs", "steps"]
    headings += ["busy", "parameter bytes", "bytes in", "bytes out"] if report else []
    headings += ["fractions in, weight, out", "runs on"] + (["why"] if report else [])
    table = Table(title=net)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for layer in layers:
        low, high = layer.weight_fracs
        cells = [
            layer.name,
            "x".join(map(str, layer.input)) + (" (folded)" if layer.folded else ""),
            "x".join(map(str, layer.output)),
            "x".join(map(str, layer.kernel)),
            f"{layer.macs:,}",
            f"{layer.steps:,}",
        ]
        if report:
            cells += [f"{100 * layer.utilisation:.1f} %"]
            cells += [f"{count:,}" for count in (layer.parameter_bytes, layer.input_bytes, layer.output_bytes)]
        weight = f"{low}" if low == high else f"{low} to {high}"
        cells += [f"{layer.in_frac}, {weight}, {layer.out_frac}", layer.runs_on]
        table.add_row(*cells, *([layer.why] if report else []))
    console.print(table)
    if report:
        console.print(compile_report.headline(program), highlight=False)
    if out is not None:
        console.print(f"wrote {out}")


@app.command()
def version() -> None:
    """Print the version."""
    try:
        print(metadata.version("redline"))
    except metadata.PackageNotFoundError:
        print("not installed (running from a source folder)")


def _fail(message: str) -> int:
    errors.print(f"[red]error:[/] {message}", highlight=False, soft_wrap=True)
    return 1


def _expected() -> tuple[type[BaseException], ...]:
    """Errors whose message is all a user needs."""
    from host.compiler.limits import CompileError
    from host.datasets.data import DataError
    from host.devices.device import DeviceError
    from host.faults.plan import PlanError
    from host.models import ModelError
    from host.program.program import ProgramError
    from host.run import RunError
    from host.training.train import CheckpointError
    from host.training.twin import AttachError
    from hw.config import ConfigError
    from sim.build import BuildError
    from sim.client import SimulatorError
    from sim.tools import ToolError

    return (
        *(DataError, DeviceError, CompileError, ModelError, PlanError, ProgramError, RunError, CheckpointError),
        *(AttachError, ConfigError, BuildError, SimulatorError, ToolError),
    )


def main() -> None:
    """Entry point: expected errors become one line and status 1, Ctrl-C status 130."""
    try:
        app()
    except Exception as error:
        if isinstance(error, _expected()):
            sys.exit(_fail(str(error)))
        raise


if __name__ == "__main__":
    main()
