"""The demo, small and on the reference device: reproducible, resumable, and honest about its settings."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from host.devices.device import LaunchReport
from host.run import Run, RunError, differences
from host.store.files import write_atomic, write_json
from host.studies import demo, soft_errors, workbench
from host.studies.overclock import OverclockSettings
from host.studies.workbench import Settings, Workbench
from host.training.train import Evaluation
from tests.needs import needs_data

pytestmark = needs_data

SMALL = Settings(
    device="emulator",
    units=1,
    test_images=64,
    train_images=128,
    batch=16,
    calibration_images=64,
    probe_images=16,
)
TINY = demo.Settings(
    overclock=OverclockSettings(**asdict(SMALL), clocks=(200.0,)),
    soft_errors=soft_errors.SoftErrorSettings(**asdict(SMALL), rates=(1e-3,)),
)
STUDY = "soft-errors"
RESULTS = (f"{STUDY}/results.csv", "report.md", "report.html", "soft-errors.png", "soft-errors.svg")
COMMAND = [
    *(sys.executable, "-m", "host.cli", "demo", "--device", "emulator", "--clocks", "200", "--rates", "0.001"),
    *("--test-images", "64", "--train-images", "640", "--units", "1"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    demo.run(folder, TINY)
    return folder


def other(**changed: object) -> demo.Settings:
    return replace(TINY, soft_errors=replace(TINY.soft_errors, **changed))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_the_table_has_every_treatment_with_its_interval(finished: Path) -> None:
    rows = list(csv.DictReader((finished / STUDY / "results.csv").read_text().splitlines()))
    assert [row["treatment"] for row in rows] == ["float", "int8, fault-free", "original", "CLP", "TWA", "TWA+CLP"]
    for row in rows:
        assert float(row["wilson95_low"]) <= float(row["accuracy"]) <= float(row["wilson95_high"])
        assert int(row["images"]) == 64
    assert rows[3]["protected"] == rows[5]["protected"] != ""
    assert int(rows[2]["faults_applied"]) > int(rows[3]["faults_applied"]) > 0
    assert int(rows[0]["faults_applied"]) == int(rows[1]["faults_applied"]) == 0


def test_the_same_seed_gives_the_same_files_and_another_seed_another_table(finished: Path, tmp_path: Path) -> None:
    demo.run(tmp_path / "again", TINY)
    assert results(tmp_path / "again") == results(finished)
    demo.run(tmp_path / "other", other(seed=2))
    assert (tmp_path / "other" / STUDY / "results.csv").read_bytes() != (finished / STUDY / "results.csv").read_bytes()


def test_the_browser_report_is_one_file_that_needs_nothing_else(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert "<svg" in text
    assert 'src="data:image/png;base64,' in text
    for reference in ('href="http', 'src="http', "<script", "@import", "url(http"):
        assert reference not in text


def test_the_reports_say_which_device_computed(finished: Path) -> None:
    for name in ("report.md", "report.html"):
        assert "not by the RTL" in (finished / name).read_text()


def test_the_configuration_names_versions_seed_and_checksums(finished: Path) -> None:
    config = json.loads((finished / STUDY / "config.json").read_text())
    assert config["parameters"]["seed"] == 1
    assert config["parameters"]["device"] == "emulator"
    assert len(config["parameters"]["weights_sha256"]) == 64
    assert "torch" in config["about"]["versions"]


def test_a_finished_run_is_shown_without_computing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(finished)
    monkeypatch.setattr(Workbench, "device", property(lambda self: pytest.fail("the device was opened")))
    monkeypatch.setattr(Workbench, "twin", lambda *a, **k: pytest.fail("a twin was made"))
    demo.run(finished, TINY)
    assert results(finished) == before


def test_other_settings_in_the_same_folder_are_refused_by_name(finished: Path) -> None:
    with pytest.raises(
        RunError, match=r"other parameters: lr was 0.03, now 0.5. Use those, another --name, or --restart"
    ):
        demo.run(finished, other(lr=0.5))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("command")
    demoed(folder, "whole")
    return folder / "whole"


def demoed(folder: Path, name: str) -> None:
    """Run the command to its end."""
    done = subprocess.run([*COMMAND, "--out", str(folder), "--name", name], env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("TWA+CLP 0.001 seed 1 retraining.safetensors",), id="once"),
        pytest.param(
            ("TWA 0.001 seed 1 retraining.safetensors", "TWA+CLP 0.001 seed 1 retraining.safetensors"),
            id="twice",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ctrl_c_anywhere_and_running_again_gives_the_same_table(
    stages: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    for stage in stages:
        process = subprocess.Popen(
            [*COMMAND, "--out", str(tmp_path), "--name", "cut"],
            env=ALONE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 120
        while (
            not (tmp_path / "cut" / STUDY / "state" / stage).exists()
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "the same command goes on from here" in said
    demoed(tmp_path, "cut")
    assert results(tmp_path / "cut") == results(whole)


# ---- the run folder


def test_a_stage_is_computed_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"a": 1}, {})
    assert run.stage("x", lambda: {"value": 1}) == {"value": 1}
    assert run.stage("x", lambda: {"value": 2}) == {"value": 1}
    assert not run.resumed
    assert Run(tmp_path / "run", {"a": 1}, {"versions": "others"}).resumed


def test_a_damaged_stage_is_named_with_the_remedy(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {}, {})
    run.stage("x", lambda: {"value": 1})
    run.state("x.json").write_text("{")
    with pytest.raises(RunError, match=r"x.json: damaged.* delete x.json to compute this stage again"):
        run.stage("x", dict)


@pytest.mark.parametrize("change", [(b'"value": 1', b'"value": 2'), (b'"x"', b'"y"'), (b'"result"', b'"Result"')])
def test_a_changed_stage_is_never_taken(change: tuple[bytes, bytes], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"a": 1}, {})
    run.stage("x", lambda: {"value": 1})
    path = run.state("x.json")
    assert change[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(RunError, match="its checksum does not match; delete x.json"):
        run.stage("x", dict)


def test_a_stage_of_another_name_or_run_is_never_taken(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run", {"a": 1}, {}), Run(tmp_path / "other", {"a": 2}, {})
    run.stage("x", lambda: {"value": 1})
    for target in (run.state("y.json"), other.state("x.json")):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(run.state("x.json"), target)
    for taker, name in ((run, "y"), (other, "x")):
        with pytest.raises(RunError, match="the result of another stage or run"):
            taker.stage(name, dict)


def test_a_file_that_a_stage_made_must_stay_what_it_was(tmp_path: Path) -> None:
    run, file = Run(tmp_path / "run", {}, {}), tmp_path / "weights"

    def train() -> dict[str, int]:
        file.write_bytes(b"weights")
        return {"steps": 3}

    assert run.stage("x", train, file) == run.stage("x", dict, file) == {"steps": 3}
    for damage in (lambda: file.write_bytes(b"Weights"), file.unlink):
        damage()
        with pytest.raises(RunError, match=r"weights: .*; delete x.json and weights to compute this stage again"):
            run.stage("x", dict, file)


def test_an_evaluation_that_was_kept_counts_what_it_counted_then() -> None:
    labels = np.array([1, 2, 3])
    packed = workbench._pack(Evaluation(np.array([1, 2, 0]), labels, LaunchReport(), "digest"))
    assert workbench._unpack(packed, labels) is not None
    for change in (
        {"predicted": [0, 0, 0]}, {"predicted": [1, 2]}, {"predicted": "x"}, {"predicted": [1, 2, 1 << 70]},
        {"right": 3}, {"report": {"cycles": 1, "what": 2}}, {"report": None},
    ):  # fmt: skip
        assert workbench._unpack(packed | change, labels) is None
    assert workbench._unpack({}, labels) is None


def test_a_damaged_configuration_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RunError, match=r"config.json: damaged.* use --restart"):
        Run(tmp_path, {}, {})


def test_differences_are_found_leaf_by_leaf() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == [("a.c", 2, 3)]
    assert differences({"a": 1}, {"b": 1}) == [("a", 1, None), ("b", None, 1)]
    assert differences({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
