"""`redline pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from host.cli.app import DataDir, app, console


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
