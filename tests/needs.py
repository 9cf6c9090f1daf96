"""What some tests need beside the development environment; why a test may be skipped, and how to have what it lacked.

A reason begins with one of two words. `install`: what is missing can be had, and the rest is how; CI has it all, and
fails where it has not (`REDLINE_SKIP_NOTHING`, tests/conftest.py). `hardware`: the machine cannot have it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from importlib.util import find_spec

import pytest

from host.datasets import data

INSTALL, HARDWARE = "install: ", "hardware: "


def needs(is_there: bool, how: str) -> pytest.MarkDecorator:
    """Skip unless something is there that can be installed, and say how."""
    return pytest.mark.skipif(not is_there, reason=f"{INSTALL}{how}")


def needs_packages(extra: str, *names: str) -> pytest.MarkDecorator:
    """Skip unless the packages of an extra can be imported."""
    return needs(all(find_spec(name) for name in names), f"pip install -c constraints.txt '.[{extra}]'")


def needs_program(name: str, package: str) -> pytest.MarkDecorator:
    """Skip unless a program is on PATH."""
    return needs(shutil.which(name) is not None, f"apt-get install {package}")


fashion = data.SYSTEM_DIRS["fashion-mnist"][0]
needs_data = needs(
    fashion.is_dir() or "REDLINE_DATA" in os.environ, "apt-get install dataset-fashion-mnist, or set REDLINE_DATA"
)
needs_fashion = needs(fashion.is_dir(), "apt-get install dataset-fashion-mnist")


def summary(reasons: list[str], *, nothing: bool) -> tuple[list[str], bool]:
    """What a run says of the tests that it skipped, and whether it fails for them.

    Parameters
    ----------
    reasons : list of str
        One a skipped test.
    nothing : bool
        Whether whatever can be installed must be there.
    """
    counted = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    lines = [f"{count} skipped; {reason}" for reason, count in counted.items()]
    return lines, nothing and any(not reason.startswith(HARDWARE) for reason in counted)


def part(which: str, names: list[str]) -> list[bool]:
    """Which tests belong to part `K/N`, counted from 0; a test's part depends on its name alone.

    Raises
    ------
    ValueError
        If there is no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", which)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"--part takes K/N with K from 0 to N - 1, not {which!r}")
    number, parts = int(found[1]), int(found[2])
    return [int(hashlib.sha256(name.encode()).hexdigest(), 16) % parts == number for name in names]
