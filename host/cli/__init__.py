"""The command line: `redline COMMAND`. A file for each command, `app` what they share."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import NoReturn

from host.cli.app import app, fail
from hw.errors import RedlineError

__all__ = ["app", "main"]

TRACEBACK = "REDLINE_TRACEBACK"
"""Environment variable that asks for tracebacks of unexpected errors."""

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
    "kernel",
    "bitstream",
):
    import_module(f"host.cli.{_command}")


def main() -> None:
    """Entry point: errors become one line and status 1, Ctrl-C status 130; never a traceback for what a user gave."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of few letters shows others as question marks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except RedlineError as error:
        leave(fail(str(error)))
    except BrokenPipeError:
        leave(1)  # whoever read the output has seen enough
    except OSError as error:
        leave(fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)))
    except MemoryError:
        leave(fail("there is not enough memory; use smaller inputs or fewer --workers"))
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        kind, first = type(error).__name__, (str(error).splitlines() or [""])[0]
        leave(fail(f"unexpected {kind}: {first}; this is a defect: please report what {TRACEBACK}=1 shows"))


def leave(status: int) -> NoReturn:
    """End, also where the output cannot be written any more: Python would try once again, and say so."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
