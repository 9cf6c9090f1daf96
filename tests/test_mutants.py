"""The mutation tests' driver: what it is set to do exists, and no dead process passes for a success."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.needs import needs_packages

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "scripts" / "mutants.toml").read_text())


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("redline_mutants", ROOT / "scripts" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["redline_mutants"] = made  # dataclasses look there
    spec.loader.exec_module(made)
    return made


def test_every_file_in_question_has_tests_of_its_own(mutants: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wanted = {Path("host/stats.py")}
    wanted |= {path for name in ("program", "campaign", "faults") for path in Path("host", name).glob("*.py")}
    assert set(map(Path, mutants.files_of(SETTINGS["tests"]))) == {p for p in wanted if p.name != "__init__.py"}
    for file in map(str, wanted):
        if not file.endswith("__init__.py"):
            assert all(Path(test).exists() for test in mutants.tests_of(file, SETTINGS["tests"]))


def test_every_mutant_that_computes_the_same_is_of_a_line_that_exists_and_has_a_reason() -> None:
    for excused in SETTINGS["equivalent"]:
        assert excused["reason"]
        lines = [line.strip() for line in (ROOT / excused["file"]).read_text().splitlines()]
        assert excused["before"] in " ".join(lines), excused


def test_a_draw_does_not_change_with_what_else_there_is(mutants: ModuleType) -> None:
    made = [mutants.Mutant("a.py", n, f"x = {n}", f"x = {n + 1}", str(n)) for n in range(40)]
    drawn = mutants.sample(made, 10, 0)
    assert len(drawn) == 10
    assert drawn == mutants.sample([*made[:5], *made[6:]], 10, 0) or made[5] in drawn
    assert drawn != mutants.sample(made, 10, 1)
    assert mutants.sample(made, None, 0) == mutants.sample(made, 40, 0) == made


def test_a_process_answers_dies_or_runs_out_of_time(mutants: ModuleType) -> None:
    assert mutants.forked(lambda: 7) == 7
    assert mutants.forked(lambda: os._exit(3)) is None
    assert mutants.forked(lambda: time.sleep(60), limit=0.2) == mutants.TIMEOUT


@needs_packages("mutants", "mutmut")
def test_mutants_are_made_of_what_computes_only(mutants: ModuleType) -> None:
    text = '"""Words."""\nimport os\nLIMIT: int = 4\n'
    text += 'def f(x: int) -> int:\n    if x < 0:\n        raise ValueError("no 1")\n    return x\n'
    assert {(m.before, m.after) for m in mutants.mutants_of("a.py", text)} == {
        ("LIMIT: int = 4", "LIMIT: int = 5"),
        ("LIMIT: int = 4", "LIMIT: int = None"),
        ("if x < 0:", "if x <= 0:"),
        ("if x < 0:", "if x < 1:"),
    }
