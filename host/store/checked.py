"""Safetensors files that carry their kind, version and checksum, so that damage is noticed when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open


def tensors_digest(structure: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over a text and named tensors, hexadecimal."""
    sha = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].tobytes())
    return sha.hexdigest()


def read_checked(
    path: Path, kind: str, version: int, structure: str, remedy: str, error: type[ValueError]
) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Read such a file, checking kind, version and checksum.

    Parameters
    ----------
    path : Path
    kind, version
        What the metadata's `format` and `version` must be.
    structure : str
        Metadata entry that the checksum covers beside the tensors.
    remedy : str
        What the error tells the user to do.
    error : exception type
        Raised with the cause: missing, damaged, truncated, of another kind or version.
    """
    if path.exists() and not path.is_file():
        raise error(f"{path}: not a plain file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file") from cause
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as cause:
        raise error(f"{path}: damaged or truncated ({cause}); {remedy}") from cause
    if metadata.get("format") != kind:
        raise error(f"{path}: not a {kind} file")
    if metadata.get("version") != str(version):
        raise error(f"{path}: version {metadata.get('version')}, this Redline reads {version}; {remedy}")
    if metadata.get("sha256") != tensors_digest(metadata.get(structure, ""), tensors):
        raise error(f"{path}: damaged, its checksum does not match; {remedy}")
    return metadata, tensors
