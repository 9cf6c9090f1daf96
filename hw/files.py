"""Files that others may have written: their size and shape are looked at before memory is taken."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from hw.errors import RedlineError

MOST_JSON = 64 << 20
"""Bytes of the longest JSON file that is read: ours are a thousandth of it."""


class ReadError(RedlineError, ValueError):
    """A file cannot be read, or is none that could be ours; the message says why."""


def read_bytes(path: Path, most: int) -> bytes:
    """What a plain file of at most `most` bytes holds; looked at before memory is taken.

    Raises
    ------
    ReadError
        If it is missing, longer, or no plain file (a device may never end).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ReadError(f"{path}: not a plain file")
            if status.st_size > most:
                raise ReadError(f"{path}: {status.st_size} bytes, more than the {most} that such a file can have")
            return file.read(status.st_size)  # what is asked for is taken at once, whatever there is
    except FileNotFoundError as error:
        raise ReadError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text.

    Raises
    ------
    ReadError
        If it is none, or its values are nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ReadError(f"{what}: no file of ours: its values are nested too deeply") from error
    except ValueError as error:
        raise ReadError(f"{what}: damaged: {error}") from error


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The value in a JSON file; `ReadError` if it is missing, too long or damaged."""
    return parse_json(read_bytes(path, most), str(path))
