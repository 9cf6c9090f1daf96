"""A content-addressed cache of build products on disk: published whole or not at all, one builder at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hw.errors import RedlineError
from sim.lock import locked


class BuildError(RedlineError, RuntimeError):
    """A simulator could not be built; the message names the cause and the remedy."""


def cache_directory() -> Path:
    """Where build products are kept: `REDLINE_CACHE`, else `redline` in the XDG cache folder."""
    chosen = os.environ.get("REDLINE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "redline"


def digest(parts: Mapping[str, object]) -> str:
    """Key of what is made from `parts` (JSON-serialisable)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def explain(error: OSError, directory: Path) -> BuildError:
    """What a failed write in the cache folder means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return BuildError(
            f"no space left in the cache folder {directory}: free some, or point REDLINE_CACHE at another disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BuildError(
            f"the cache folder {directory} cannot be written ({error.strerror}): mend its permissions, or point "
            "REDLINE_CACHE at a folder of yours"
        )
    return BuildError(f"the cache folder {directory} cannot be used: {error}; point REDLINE_CACHE elsewhere")


def cached(kind: str, key: str, make: Callable[[Path], None], *, directory: Path | None = None) -> Path:
    """The cache's entry `kind/key`, made by `make` if it is not there yet.

    Parameters
    ----------
    kind : str
        Sort of entry; a folder of the cache.
    key : str
        `digest` of everything the entry depends on.
    make : callable
        Fills the empty folder it is given. If it raises, nothing is published.
    directory : Path, optional
        The cache instead of `cache_directory()`.

    Returns
    -------
    Path
        The entry's folder. It is complete, and never changes.

    Raises
    ------
    BuildError
        If the cache cannot be written.
    """
    root = directory or cache_directory()
    entry = root / kind / key
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        # One lock for all: builds saturate the machine, so there is nothing to win by running two.
        with locked(root / "lock"):
            if entry.is_dir():
                return entry
            # Whoever left a temporary folder behind is dead: the lock is ours.
            for stale in root.glob("building-*"):
                shutil.rmtree(stale, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix="building-", dir=root))
            try:
                make(temporary)
                temporary.chmod(0o755)
                temporary.rename(entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain(error, root) from error
    return entry
