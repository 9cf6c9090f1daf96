"""`redline compile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from host.cli.app import DataDir, app, console, errors, fail


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
        raise typer.Exit(fail(f"no network {net!r}; there are {', '.join(models.MODELS)}"))
    if fallback not in ("error", "cpu"):
        raise typer.Exit(fail(f"--fallback is error or cpu, not {fallback!r}"))
    small = net in models.GREY
    if small and photos is not None:
        raise typer.Exit(fail(f"{net} takes images of 28x28 pixels; name their folder with --data-dir, not --photos"))
    config = Config(
        lanes=lanes, vec=vec, feature_bytes=feature_bytes, weight_bytes=weight_bytes, pool_columns=pool_columns
    )
    notes = []
    if weights is None and net not in models.SHIPPED:
        if out is not None:
            raise typer.Exit(
                fail(f"no weights of {net} come with Redline; name a file with --weights to save a Program")
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
