"""What comes before everything else: whether Redline's packages are those that Python finds, and the command.

Redline's packages have short names that other projects of this field use, too. A folder `hw/` beside a script is found
before Redline's. That is said here, in one line, before an import fails somewhere within.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("hw", "sim", "host")
"""Redline's packages: they lie beside this file."""
HERE = Path(__file__).resolve().parent


def check() -> None:
    """Make sure that Redline's packages are found, or already imported, and not others of the same names.

    Raises
    ------
    ImportError
        If something shadows a package; in one line, with what shadows what and how to go on.
    """
    found = {name: place for name in PACKAGES if (place := _place(name)) != HERE / name / "__init__.py"}
    if not found:
        return
    if None in found.values():
        missing = ", ".join(f"'{name}'" for name, place in found.items() if place is None)
        raise ImportError(f"Redline's package {missing} is missing from {HERE}: install Redline again")
    others = ", ".join(f"'{name}' by {_shown(place)}" for name, place in found.items() if place)
    raise ImportError(
        f"Redline's packages are shadowed: {others}. Rename what shadows them, or keep its folder off Python's path "
        "(run from another folder, with 'python -P', or without it in PYTHONPATH)"
    )


def _place(name: str) -> Path | None:
    """The file that `import name` runs, or has run."""
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        if origin is None and spec is not None and spec.submodule_search_locations:
            origin = f"{next(iter(spec.submodule_search_locations))}/__init__.py"
    else:
        origin = getattr(module, "__file__", None) or f"{name}.py"
    return Path(origin).resolve() if origin is not None else None


def _shown(place: Path) -> Path:
    """A package's folder, or a module's file."""
    return place.parent if place.name == "__init__.py" else place


def main() -> None:
    """The command `redline`."""
    try:
        check()
    except ImportError as error:
        sys.exit(f"error: {error}")
    from host.cli import main as command

    command()
