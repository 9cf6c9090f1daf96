"""Redline's version: that of the installed package, or of the source folder."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path


def version(project: Path = Path(__file__).parents[1] / "pyproject.toml") -> str:
    """The version, with `+source` where Redline runs from a folder that was not installed."""
    try:
        return metadata.version("redline")
    except metadata.PackageNotFoundError:
        if not project.is_file():
            return "0+unknown"
        return f"{tomllib.loads(project.read_text())['project']['version']}+source"


VERSION = version()
