"""The study of soft errors, small: over training seeds, per MAC result and per stored bit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from host.datasets import data
from host.devices import registry
from host.run import RunError
from host.studies import soft_errors
from host.studies.report import soft_errors as shown
from host.studies.results import means_table, pooled
from host.studies.soft_errors import SoftErrorSettings
from host.training.train import evaluate
from tests.needs import needs_data

pytestmark = needs_data

TINY = SoftErrorSettings(
    device="emulator", rates=(1e-3, 1e-2), per="bit", seeds=(1, 2), test_images=96, train_images=64, batch=16,
    calibration_images=64, probe_images=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, soft_errors.Summary]:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    return folder, soft_errors.run(folder, TINY)


def test_every_treatment_is_measured_at_every_rate_with_every_seed(
    finished: tuple[Path, soft_errors.Summary],
) -> None:
    rows = list(csv.DictReader((finished[0] / "results.csv").read_text().splitlines()))
    found = {(row["rate_per_bit"], row["treatment"], row["training_seed"]) for row in rows}
    wanted = {("", "float", ""), ("", "int8, fault-free", "")}
    for rate in ("0.001", "0.01"):
        wanted |= {(rate, "original", ""), (rate, "CLP", "")}
        wanted |= {(rate, treatment, seed) for treatment in ("TWA", "TWA+CLP") for seed in "12"}
    assert found == wanted
    by = {(row["rate_per_bit"], row["treatment"]): int(row["faults_applied"]) for row in rows}
    assert by["0.01", "original"] > 5 * by["0.001", "original"] > 0


def test_the_original_meets_flips_of_the_stored_inputs_and_features(
    finished: tuple[Path, soft_errors.Summary],
) -> None:
    """By hand, on the reference."""
    from host import models
    from host.faults.models import SoftErrors
    from host.training.twin import attach

    train, test = (data.load("fashion-mnist", split) for split in ("train", "test"))
    device = registry.device("reference", saboteur=True)
    twin = attach(models.lenet5(pretrained=True), device, calibrate=train.head(64).pixels)
    model = SoftErrors(1e-2, per="bit", sites=("input", "feature"))
    again = evaluate(twin, test.head(96), faults=model, seed=1)
    (row,) = [r for r in finished[1].rows if (r.treatment, r.level) == ("original", 1e-2)]
    assert np.array_equal(again.predicted, row.evaluation.predicted)


def test_the_report_shows_curves_and_means_of_seeds(finished: tuple[Path, soft_errors.Summary]) -> None:
    folder, summary = finished
    text = (folder / "report.md").read_text()
    assert "At a bit error rate of 0.01" in text
    assert "means of 2 training seeds" in text
    assert "single bits of the stored inputs and features" in text
    assert "The protected layer" in text
    assert (folder / "soft-errors.png").stat().st_size > 1000
    both = [r.accuracy.value for r in summary.rows if (r.treatment, r.level) == ("TWA", 1e-3)]
    assert len(both) == 2
    assert pooled(summary.rows, "TWA", 1e-3).value == pytest.approx(np.mean(both), abs=0.5 / 96)
    assert shown.LEVELS["bit"] in text
    table = means_table(summary.rows, "rate")
    assert table.head == ["rate", "original", "CLP", "TWA", "TWA+CLP"]
    assert table.body[0][3].endswith(": " + ", ".join(f"{100 * value:.2f}" for value in both))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"sites": ("weight",)}, "a flip in a weight stays for all test images.*redline campaign run"),
        ({"sites": ("mac",)}, "a rate per bit has the sites"),
        ({"per": "byte"}, 'per must be "bit" or "mac"'),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_computed(
    changed: dict[str, object], match: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=match):
        soft_errors.run(tmp_path / "bad", replace(TINY, **changed))  # type: ignore[arg-type]
    assert not (tmp_path / "bad").exists()
