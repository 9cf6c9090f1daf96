"""A run's folder: its configuration, and stages whose results are kept so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.store.files import write_json
from hw.errors import RedlineError


class RunError(RedlineError, RuntimeError):
    """A run's folder does not fit what is asked of it; the message says why and what to do."""


class Run:
    """A folder of results.

    `config.json` holds the parameters that decide the result (and, under "about", what is merely good to know). A
    folder made with other parameters is refused. Each stage's result is a JSON file of its own, complete or not there.

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
        path = folder / "config.json"
        plain = json.loads(json.dumps(config))
        if path.exists():
            try:
                found = json.loads(path.read_text())["parameters"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path}: damaged ({error}); use --restart, or another --name") from error
            changed = differences(found, plain)
            if changed:
                listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in changed)
                raise RunError(
                    f"{folder} holds a run with other parameters: {listed}. Use those, another --name, or --restart"
                )
            self.resumed = True
        else:
            try:
                write_json(path, {"parameters": plain, "about": about})
            except OSError as error:
                raise RunError(str(error)) from error

    def state(self, name: str) -> Path:
        """Where a stage keeps a file of its own."""
        return self.folder / "state" / name

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result of a stage, or a newly computed one (JSON values), which is then kept."""
        path = self.state(f"{name}.json")
        if path.exists():
            try:
                return json.loads(path.read_text())
            except ValueError as error:
                raise RunError(f"{path}: damaged ({error}); delete it to compute this stage again") from error
        result = json.loads(json.dumps(compute()))
        write_json(path, result)
        return result

    def has(self, name: str) -> bool:
        """Whether a stage's result is there already."""
        return self.state(f"{name}.json").exists()


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
