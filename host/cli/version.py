"""`redline version`."""

from __future__ import annotations

from importlib import metadata

from host.cli.app import app


@app.command()
def version() -> None:
    """Print the version."""
    try:
        print(metadata.version("redline"))
    except metadata.PackageNotFoundError:
        print("not installed (running from a source folder)")
