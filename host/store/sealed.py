"""JSON objects that carry a SHA-256 of themselves, so that damage is noticed when they are read again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from host.store.files import write_json
from hw.files import MOST_JSON, ReadError, read_json

SEAL = "sha256"
"""Where an object has its checksum."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, hexadecimal: the same for equal values, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its checksum."""
    plain = json.loads(json.dumps({key: entry for key, entry in value.items() if key != SEAL}))
    return plain | {SEAL: digest(plain)}


def opened(value: Any, what: str) -> dict[str, Any]:
    """The object without its checksum.

    Raises
    ------
    ReadError
        If it is none, or the checksum is missing or not its own.
    """
    if not isinstance(value, dict):
        raise ReadError(f"{what}: damaged: no object")
    plain = {key: entry for key, entry in value.items() if key != SEAL}
    if SEAL not in value:
        raise ReadError(f"{what}: damaged, or of an earlier version: it has no checksum")
    if value[SEAL] != digest(plain):
        raise ReadError(f"{what}: damaged: its checksum does not match")
    return plain


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write an object with its checksum, atomically."""
    write_json(path, sealed(value))


def read_sealed(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The object in such a file; `ReadError` if it is missing or damaged."""
    return opened(read_json(path, most), str(path))
