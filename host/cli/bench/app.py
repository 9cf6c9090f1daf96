"""The group of commands `redline bench`."""

from __future__ import annotations

import typer

from host.cli.app import app

bench_app = typer.Typer(help="Measure speeds.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
