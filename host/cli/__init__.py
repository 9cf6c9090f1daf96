"""The command line: `redline COMMAND`. A file for each command, `app` what they share."""

from __future__ import annotations

import sys
from importlib import import_module

from host.cli.app import app, fail
from hw.errors import RedlineError

__all__ = ["app", "main"]

# In the order of the help.
for _command in (
    "doctor",
    "demo",
    "sweep",
    "verify",
    "conformance",
    "board",
    "campaign",
    "pretrain",
    "compiling",
    "estimate",
    "photos",
    "version",
    "bench",
    "timing",
    "bitstream",
):
    import_module(f"host.cli.{_command}")


def main() -> None:
    """Entry point: expected errors become one line and status 1, Ctrl-C status 130."""
    try:
        app()
    except RedlineError as error:
        sys.exit(fail(str(error)))
