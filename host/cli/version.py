"""`redline version`."""

from __future__ import annotations

from typing import Annotated

import typer

from host.cli.app import app
from host.version import VERSION


@app.command()
def version() -> None:
    """Print the version."""
    print(VERSION)


def _version(asked: bool) -> None:
    if asked:
        print(VERSION)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Train neural networks on the accelerator that will run them, while it makes errors."""
