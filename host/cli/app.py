"""What every command shares: the application, its consoles, the error line."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

# Two threads on two busy cores are slower than one; devices and campaigns use processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    help="Train neural networks on the accelerator that will run them, while it makes errors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

console = Console()
errors = Console(stderr=True)

DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the four IDX files (also: REDLINE_DATA).", metavar="DIR")
]


def fail(message: str) -> int:
    """Show an error of one line; returns the exit status."""
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return 1
