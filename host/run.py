"""A run's folder: its configuration, and stages whose results are kept so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.store.files import sweep
from host.store.sealed import digest, read_sealed, write_sealed
from hw.errors import RedlineError
from hw.files import ReadError, read_bytes

MOST_WEIGHTS = 1 << 32
"""Bytes of the longest file that a stage makes."""


class RunError(RedlineError, RuntimeError):
    """A run's folder does not fit what is asked of it; the message says why and what to do."""


class Run:
    """A folder of results.

    `config.json` holds the parameters that decide the result (and, under "about", what is merely good to know). A
    folder made with other parameters is refused. Each stage's result is a JSON file of its own, complete or not there,
    with a checksum and the name of its stage.

    Parameters
    ----------
    folder : Path
    config : dict
        JSON values; nested dicts are compared leaf by leaf.
    about : dict
        Versions and the like: recorded, not compared.
    """

    def __init__(self, folder: Path, config: dict[str, Any], about: dict[str, Any]) -> None:
        self.folder = folder
        self.resumed = False
        self._identity = digest(config)
        path = folder / "config.json"
        plain = json.loads(json.dumps(config))
        if path.exists():
            try:
                found = read_sealed(path).get("parameters")
            except ReadError as error:
                raise RunError(f"{error}; use --restart, which begins anew, or another --name") from error
            changed = differences(found, plain)
            if changed:
                listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in changed)
                raise RunError(
                    f"{folder} holds a run with other parameters: {listed}. Use those, another --name, or --restart"
                )
            self.resumed = True
            sweep(folder)
        else:
            try:
                write_sealed(path, {"parameters": plain, "about": about})
            except OSError as error:
                raise RunError(str(error)) from error

    def state(self, name: str) -> Path:
        """Where a stage keeps a file of its own."""
        return self.folder / "state" / name

    def stage(self, name: str, compute: Callable[[], dict[str, Any]], file: Path | None = None) -> dict[str, Any]:
        """The kept result of a stage, or a newly computed one (JSON values), which is then kept.

        Parameters
        ----------
        name : str
        compute : callable
        file : Path, optional
            A file that the stage makes; later it must be the same.

        Raises
        ------
        RunError
            If what was kept is damaged, or of another stage or run.
        """
        path, own = self.state(f"{name}.json"), {"stage": name, "run": self._identity}
        if path.exists():
            try:
                kept = read_sealed(path)
                if {key: kept.get(key) for key in own} != own or not isinstance(kept.get("result"), dict):
                    raise ReadError(f"{path}: the result of another stage or run")
                if file is not None and kept.get("file") != _sha256(file):
                    raise ReadError(f"{file}: damaged, or not what this stage made")
            except ReadError as error:
                also = "" if file is None else f" and {file.name}"
                raise RunError(f"{error}; delete {path.name}{also} to compute this stage again") from error
            return kept["result"]
        result = json.loads(json.dumps(compute()))
        write_sealed(path, {**own, "result": result, "file": None if file is None else _sha256(file)})
        return result

    def has(self, name: str) -> bool:
        """Whether a stage's result is there already."""
        return self.state(f"{name}.json").exists()


def _sha256(file: Path) -> str:
    return hashlib.sha256(read_bytes(file, MOST_WEIGHTS)).hexdigest()


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves in which two nested dicts, or lists of as many, differ: dotted name, old and new value (None: absent)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            found += differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and isinstance((*old, None)[0], dict):
        return differences(dict(enumerate(old)), dict(enumerate(new)), at)
    return [] if old == new else [(at, old, new)]
