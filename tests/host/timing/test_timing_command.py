"""`redline timing`: what it prints, and how it fails."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from host import timing
from host.cli import app
from hw.delays import DelayError, bank_names
from sim.timing import shipped, validate
from sim.timing.oracle import OracleError
from sim.timing.validate import Point, Score


def run(*arguments: str):
    return CliRunner().invoke(app, ["timing", *arguments])


def test_show_prints_every_bank_and_what_is_not_modelled() -> None:
    done = run("show", "--static", "--json", str(shipped.path(seed=1)))
    assert done.exit_code == 0, done.output
    (shown,) = json.loads(done.stdout)["tables"]
    table = shipped.load(seed=1)
    assert list(shown["banks"]) == ["array", *bank_names(8)]
    for name in bank_names(8):
        assert shown["banks"][name]["static_ps"] == shown["banks"][name]["nextpnr_ps"] == table.reported_ps[name]
    assert shown["banks"]["array"]["static_mhz"] == pytest.approx(1e6 / table.onset_ps, abs=0.01)
    assert shown["of_this_gateware"] is True
    assert {"multiplier", "requantiser", "control and memories"} <= set(shown["unmodelled"])


def test_show_refuses_what_is_no_table(tmp_path) -> None:
    (tmp_path / "table.json").write_text("{}")
    done = run("show", "--static", str(tmp_path / "table.json"))
    assert isinstance(done.exception, DelayError)
    assert "there is no field schema" in str(done.exception)


def test_build_refuses_seeds_that_are_no_numbers() -> None:
    done = run("build", "--seed", "1,two")
    assert done.exit_code == 2
    assert "not a list of whole numbers" in done.output


def test_validate_looks_for_its_page_and_icarus_before_anything_that_takes_long(tmp_path, monkeypatch) -> None:
    done = run("validate", "--docs", str(tmp_path))
    assert isinstance(done.exception, timing.PageError)
    assert "has no place for the validation" in str(done.exception)
    (tmp_path / timing.PAGE).write_text(f"{timing.BEGIN}\n{timing.END}\n")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    done = run("validate", "--docs", str(tmp_path))
    assert isinstance(done.exception, OracleError)
    assert "apt-get install iverilog" in str(done.exception)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_validate_needs_no_page_outside_the_checkout(options: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    for page in (None, "a page of somebody else's\n"):
        if page:
            (tmp_path / "docs").mkdir()
            (tmp_path / "docs" / timing.PAGE).write_text(page)
        assert isinstance(run("validate", *options).exception, OracleError)


def made_up_points() -> list[Point]:
    points = []
    for reject in validate.REJECTS:
        for period, rate in ((5500, 0.0), (5000, 0.02), (4500, 0.2)):
            score = Score(rate, 0.98 if rate else None)
            naive = Score(3 * rate, 0.1 if rate else None)
            points.append(Point(4, 2, "fc1, group 0", period, 6000, reject, 500, rate, rate, score, score, naive, True))
    return points


def test_the_page_gets_the_figures_between_its_marks_and_keeps_the_rest(tmp_path) -> None:
    page = tmp_path / timing.PAGE
    page.write_text(f"before\n{timing.BEGIN}\nold figures\n{timing.END}\nafter\n")
    points = made_up_points()
    for _ in range(2):
        timing.write(tmp_path, points, validate.summary(points))
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith(f"{timing.END}\nafter\n")
        assert "old figures" not in text
        assert "| every pulse counts | naive old value | 5 % and more | 1 | 3.000 to 3.000 | 0.1000 |" in text
        assert "| 4 | 2 | fc1 | 4500 | 0.750 | 0.2000 | 0.2000 | 0.9800 | 0.2000 | 0.9800 | 0.6000 |" in text
    assert (tmp_path / timing.PLOT).read_bytes().startswith(b"\x89PNG")
