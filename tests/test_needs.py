"""A run lists what it skipped and how to have it; CI's fails for what can be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest
from tests.needs import HARDWARE, needs, needs_packages, needs_program

@needs({there}, "apt-get install oscilloscope")
def test_one(): pass

@pytest.mark.skipif({fits}, reason=HARDWARE + "no wings")
def test_two(): pass

def test_three(): pass
"""


@pytest.mark.parametrize(
    ("reasons", "fails"),
    [
        ([], False),
        (["hardware: no wings"], False),
        (["install: apt-get install tcl", "hardware: no wings"], True),
        (["could not import 'ray'"], True),
    ],
)
def test_only_what_no_machine_of_this_kind_can_have_may_be_missing(reasons: list[str], fails: bool) -> None:
    lines, failed = needs.summary([*reasons, *reasons], nothing=True)
    assert lines == [f"2 skipped; {reason}" for reason in sorted(reasons)]
    assert failed is fails
    assert needs.summary(reasons, nothing=False)[1] is False


@pytest.mark.parametrize(
    ("there", "fits", "nothing", "status", "workers"),
    [(False, True, False, 0, 0), (True, True, True, 0, 0), (False, False, True, 1, 1)],
)
def test_the_run_says_so_and_its_status_is_that(
    there: bool, fits: bool, nothing: bool, status: int, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(TESTS.format(there=there, fits=fits))
    for name in ("conftest.py", "needs.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    env.pop("REDLINE_SKIP_NOTHING", None)
    if nothing:
        env["REDLINE_SKIP_NOTHING"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(["-n", str(workers)] if workers else []),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout
    assert ("1 skipped; install: apt-get install oscilloscope" in done.stdout) is not there
    assert ("1 skipped; hardware: no wings" in done.stdout) is fits
    assert ("REDLINE_SKIP_NOTHING is set" in done.stdout) is bool(status)


def test_every_skip_of_the_tests_has_one_of_the_two_words() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "pytest.skip(" in line or "importorskip(" in line or "mark.skip" in line:
                assert needs.INSTALL in line or needs.HARDWARE in line, f"{path}:{number}"


def test_parts_are_disjoint_and_together_everything() -> None:
    names = [f"tests/test_{number}.py::test_it[{number}]" for number in range(100)]
    assert all(needs.part("0/1", names))
    parts = [needs.part(f"{number}/7", names) for number in range(7)]
    assert [sum(kept) for kept in zip(*parts, strict=True)] == [1] * 100
    assert min(map(sum, parts)) > 5
    # What else there is does not matter.
    assert needs.part("3/7", names[50:]) == parts[3][50:]


@pytest.mark.parametrize("which", ["3", "3/3", "-1/3", "a/b", "0/0", "1/2/3"])
def test_a_part_that_is_none_is_refused(which: str) -> None:
    with pytest.raises(ValueError, match=r"--part takes K/N with K from 0 to N - 1, not"):
        needs.part(which, [])
