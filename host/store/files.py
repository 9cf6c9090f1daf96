"""Files that are complete or not there: written beside, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hw.errors import RedlineError

PART = ".part"
"""How files end that are being written."""


class WriteError(RedlineError, OSError):
    """A file cannot be written; what was there before is as it was."""

    def __init__(self, path: Path, cause: OSError) -> None:
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = cause.strerror or str(cause)
        super().__init__(f"{path}: cannot be written: {why}{'; free some space, and run it again' if full else ''}")
        self.errno = cause.errno


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; an interruption leaves the old file as it was.

    A pipe or a device is written to, not replaced. What killed writers of the same file have left is cleaned up.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    raw = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(raw)  # refuses a folder
            return
        sweep(path.parent, path.name)
        _replace(path, raw)
    except OSError as error:
        raise WriteError(path, error) from error


def _replace(path: Path, raw: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Held for as long as the writer lives: so `sweep` knows.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes private files; results are as readable as any other file.
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers have left in a folder: of the file `name`, or of all files in it and below it."""
    for path in folder.rglob(f".*{PART}") if name is None else folder.iterdir():
        if name is not None and not (path.name.startswith(f".{name}.") and path.name.endswith(PART)):
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
                path.unlink()
            finally:
                os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")
