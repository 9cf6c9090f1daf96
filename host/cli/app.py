"""What every command shares: the application, its consoles, the error line."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

# Two threads on two busy cores are slower than one; devices and campaigns use processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    help="Train neural networks on the accelerator that will run them, while it makes errors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Without markup: names that users give are shown as they are. What is styled is a `Text`, or has a style.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the four IDX files (also: REDLINE_DATA).", metavar="DIR")
]


def fail(message: str) -> int:
    """Show an error of one line; returns the exit status."""
    say("error", message, "red")
    return 1


def say(kind: str, message: str, style: str) -> None:
    """A line on the error console whose first word is coloured."""
    errors.print(Text.assemble((f"{kind}:", style), " ", message), highlight=False, soft_wrap=True)
