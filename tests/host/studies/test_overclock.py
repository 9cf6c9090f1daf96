"""The study of overclocking, small and on the reference device."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from host.faults.overclock import BeyondModel
from host.run import RunError
from host.store.sealed import read_sealed
from host.studies import overclock
from host.studies.overclock import OverclockSettings
from hw.delays import Table
from tests.needs import needs_data

pytestmark = needs_data

TINY = OverclockSettings(
    device="reference",
    units=1,
    clocks=(180.0, 200.0),
    seeds=(1, 2),
    baselines=True,
    test_images=48,
    train_images=64,
    batch=16,
    calibration_images=64,
    probe_images=16,
)
LOOP = ("original", "TWA", "TWA+CLP")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    overclock.run(folder, TINY)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def test_every_treatment_is_measured_at_every_clock_with_every_seed(finished: Path) -> None:
    found = {(row["mhz"], row["treatment"], row["training_seed"]) for row in rows(finished)}
    wanted = {("", "float", ""), ("", "int8, fault-free", "")}
    for mhz in ("180", "200"):
        wanted.add((mhz, "original", ""))
        for treatment in (*LOOP[1:], "retrained fault-free", "noise", "dropout"):
            wanted |= {(mhz, treatment, "1"), (mhz, treatment, "2")}
    assert found == wanted
    for row in rows(finished):
        assert float(row["wilson95_low"]) <= float(row["accuracy"]) <= float(row["wilson95_high"])


def test_below_the_static_limit_nothing_is_wrong_and_above_it_something_is(finished: Path) -> None:
    assert 180 < TINY.delays.static_fmax_mhz() < 200
    state = finished / "state"
    clean, slow, fast = (
        read_sealed(state / f"{name}.json")["result"]["digest"] for name in ("int8", "original 180", "original 200")
    )
    assert slow == clean
    assert fast != clean
    errors = {mhz: read_sealed(state / f"errors {mhz}.json")["result"]["layers"] for mhz in (180, 200)}
    assert all(layer[kind]["wrong"] == 0 for layer in errors[180] for kind in ("accumulator", "output"))
    assert all(layer["accumulator"]["wrong"] > 0 for layer in errors[200])


def test_a_repeated_run_is_the_same_byte_for_byte_and_the_report_says_so(finished: Path) -> None:
    state = finished / "state"
    first, again = (read_sealed(state / f"original 200{end}.json")["result"] for end in ("", " again"))
    assert first["digest"] == again["digest"]
    assert "a repeated run gave the same outputs, byte for byte" in (finished / "report.md").read_text()


def test_the_report_has_tips_errors_and_pictures(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    for said in (
        "has lost one point",
        "has lost 5 points",
        "wrong accumulators",
        "static limit",
        "noise",
        "dropout",
        "seed 2",
    ):
        assert said in text, said
    for name in ("overclock.png", "overclock-bits.svg", "report.html"):
        assert (finished / name).stat().st_size > 1000


def test_the_run_is_tied_to_its_delay_table(finished: Path, tmp_path: Path) -> None:
    parameters = json.loads((finished / "config.json").read_text())["parameters"]
    assert parameters["delay_table"] == TINY.delays.hash
    slower = tmp_path / "slower.json"
    TINY.delays.derated(1.01).save(slower)
    with pytest.raises(RunError, match="delay_table was"):
        overclock.run(finished, replace(TINY, table=str(slower)))
    assert Table.load(slower).hash != TINY.delays.hash


def test_a_clock_beyond_the_model_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(BeyondModel, match="parts fail that the model does not cover"):
        overclock.run(tmp_path / "fast", replace(TINY, clocks=(180.0, 400.0)))
    assert not (tmp_path / "fast").exists()
