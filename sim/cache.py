"""A content-addressed cache of build products on disk: published whole or not at all, one builder at a time.

An entry carries the SHA-256 of its files. It is looked at once a process, before the entry's first use: what a program
reads or runs from the cache is what was built, or is built anew."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hw.errors import RedlineError
from sim.lock import locked

log = logging.getLogger("redline.cache")

SUMS = "SHA256SUMS"
"""An entry's file of checksums, as `sha256sum --check` reads it."""
Signature = tuple[tuple[str, int, int], ...]
_verified: dict[Path, Signature] = {}
"""Entries whose checksums this process has compared, and what their files were like then."""


class BuildError(RedlineError, RuntimeError):
    """A simulator could not be built; the message names the cause and the remedy."""


def cache_directory() -> Path:
    """Where build products are kept: `REDLINE_CACHE`, else `redline` in the XDG cache folder."""
    chosen = os.environ.get("REDLINE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
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


def _files(entry: Path) -> list[Path]:
    return sorted(path for path in entry.rglob("*") if not path.is_dir() and path != entry / SUMS)


def _sums(entry: Path) -> str:
    """The checksums of all files below a folder, a line each."""
    lines = []
    for path in _files(entry):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(entry)}\n")
    return "".join(lines)


def _signature(entry: Path) -> Signature:
    """What tells, without reading them, that files have changed."""
    status = ((path, path.stat()) for path in _files(entry))
    return tuple((str(path), each.st_size, each.st_mtime_ns) for path, each in status)


def _sound(entry: Path) -> bool:
    """Whether an entry is there and what was published."""
    if not entry.is_dir():
        return False
    try:
        signature = _signature(entry)
        if _verified.get(entry) != signature:
            if (entry / SUMS).read_bytes() != _sums(entry).encode():
                return False
            _verified[entry] = signature
    except OSError:
        return False
    return True


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
        The entry's folder. It is complete, and never changes. One that has, is made anew, with a warning.

    Raises
    ------
    BuildError
        If the cache cannot be written.
    """
    root = (directory or cache_directory()).absolute()  # programs are started in other folders
    entry = root / kind / key
    if _sound(entry):
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        # One lock for all: builds saturate the machine, so there is nothing to win by running two.
        with locked(root / "lock"):
            if _sound(entry):
                return entry
            if os.path.lexists(entry):
                log.warning("%s is damaged or was changed (its checksums do not match); it is built anew", entry)
                entry.rename(root / f"building-{kind}-{key}")
            # Whoever left a temporary folder behind is dead: the lock is ours.
            for stale in root.glob("building-*"):
                if stale.is_dir() and not stale.is_symlink():
                    shutil.rmtree(stale, ignore_errors=True)
                else:
                    stale.unlink()
            temporary = Path(tempfile.mkdtemp(prefix="building-", dir=root))
            try:
                make(temporary)
                (temporary / SUMS).write_text(_sums(temporary))
                temporary.chmod(0o755)
                temporary.rename(entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain(error, root) from error
    return entry
