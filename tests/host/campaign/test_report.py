"""Reports and analyses against counts made by hand, and the command line."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from host import models
from host.campaign import report
from host.campaign.analyses import cost, critical, errors, sensitivity
from host.campaign.campaign import STORE, CampaignError
from host.campaign.settings import Settings
from host.campaign.stop import Trials
from host.campaign.store import Store, StoreError
from host.cli import app
from host.devices import registry
from host.faults.models import SoftErrors
from host.program.integer import run_layer
from host.stats import Clustered, difference, planned_trials
from host.training.protect import error_shares
from host.training.twin import Twin, attach
from tests.host.campaign import small
from tests.needs import needs_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    small.campaign().run(Trials(80), folder, workers=0)
    return folder


def twin() -> Twin:
    net = models.lenet5(pretrained=True)
    device = registry.device("reference", lanes=8, vec=8, saboteur=True)
    return attach(net, device, calibrate=small.Random.of(16).pixels).eval()


def by_hand(folder: Path, column: str, arm: str, where: str = "1") -> tuple[np.ndarray, np.ndarray]:
    with sqlite3.connect(folder / STORE) as db:
        rows = db.execute(
            f"SELECT SUM({column}), COUNT(*) FROM outcome JOIN trial USING (number) WHERE arm = ? AND {where} "
            "GROUP BY number",
            (arm,),
        ).fetchall()
    db.close()
    columns = np.array(rows)
    return columns[:, 0], columns[:, 1]


def test_shares_are_those_of_the_rows(folder: Path) -> None:
    summary = report.summarise(folder)
    assert summary.trials == 80
    for arm in ("original", "clp"):
        for outcome, column in (("masked", "masked"), ("sdc1", "sdc1"), ("benign", "NOT masked AND NOT sdc1")):
            hits, sizes = by_hand(folder, column, arm)
            assert summary.rates[arm][outcome] == Clustered.of(hits, sizes)
        parts = [summary.rates[arm][name].successes for name in ("masked", "benign", "sdc1")]
        assert sum(parts) == 320
        assert sum(r.successes for r in summary.stages[arm].values()) == parts[0]


def test_arms_are_compared_fault_by_fault(folder: Path) -> None:
    summary = report.summarise(folder)
    (found,) = [c.found for c in summary.comparisons if c.outcome == "masked"]
    first, sizes = by_hand(folder, "masked", "original")
    second, _ = by_hand(folder, "masked", "clp")
    assert found == difference(first, second, sizes)
    assert found.value > 0


def test_trials_behind_a_gap_do_not_count(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gap"
    small.campaign().run(Trials(20), copy, workers=0)
    with Store(copy / STORE) as store:
        store.query("SELECT 1")
    with sqlite3.connect(copy / STORE) as db:
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("DELETE FROM trial WHERE number = 12")
    db.close()
    assert report.summarise(copy).trials == 12


def test_the_report_is_written_in_every_form(folder: Path) -> None:
    summary = report.summarise(folder)
    report.write(folder, summary)
    rows = list(csv.DictReader((folder / "outcomes.csv").read_text().splitlines()))
    (row,) = [r for r in rows if (r["arm"], r["outcome"]) == ("clp", "sdc1")]
    assert float(row["share"]) == summary.rates["clp"]["sdc1"].value
    assert (float(row["low"]), float(row["high"])) == summary.rates["clp"]["sdc1"].interval
    assert "SDC-1" in (folder / "report.md").read_text()
    assert (folder / "outcomes.png").stat().st_size > 1000
    assert (folder / "report.html").stat().st_size > 1000


def test_sensitivity_counts_faults_by_place(folder: Path) -> None:
    found = sensitivity.measure(folder)
    for layer, shares in found.by_layer.items():
        hits, sizes = by_hand(folder, "sdc1", "original", f"trial.layer = '{layer}'")
        assert shares["sdc1"] == Clustered.of(hits, sizes)
    for (site, bit), shares in found.by_bit.items():
        hits, sizes = by_hand(folder, "masked", "original", f"site = '{site}' AND bit = {bit}")
        assert shares["masked"] == Clustered.of(hits, sizes)
    assert sum(cell["sdc1"].clusters for cell in found.cells.values()) == 80
    files = sensitivity.write(folder, found)
    assert all(path.stat().st_size > 100 for path in files)
    with pytest.raises(CampaignError, match="no arm 'x'"):
        sensitivity.measure(folder, "x")


def test_error_distributions_sum_to_one_and_agree_with_the_policy(tmp_path: Path) -> None:
    model, pixels = SoftErrors(1e-3, per="mac"), small.Random.of(40).pixels
    for inherited in (False, True):
        found = errors.measure(twin(), model, pixels, threshold=5, inherited=inherited, seed=4)
        wanted = error_shares(twin(), model, pixels, threshold=5, inherited=inherited, seed=4)
        for name, shares in found.layers.items():
            assert sum(r.value for r in shares.values()) == pytest.approx(1)
            assert shares["large"].value == pytest.approx(wanted[name])
            assert shares["large"].clusters == 40
    assert max(shares["large"].value for shares in found.layers.values()) > 0
    assert all(path.stat().st_size > 100 for path in errors.write(tmp_path, found))


def test_policies_are_set_side_by_side(tmp_path: Path) -> None:
    own = twin()
    noise = small.Random.of(48)
    found = critical.measure(own, SoftErrors(1e-3, per="mac"), noise, noise, seed=2)
    assert set(found.choices) == set(critical.POLICIES)
    for choice in found.choices.values():
        (name,) = choice.names
        assert choice.scores[name] == max(choice.scores.values())
        assert name in found.protected
    for rate, change in found.protected.values():
        assert rate.value - found.alone.value == pytest.approx(change.difference)
    assert own.protected == []
    assert all(path.stat().st_size > 100 for path in critical.write(tmp_path, found))


def test_protecting_a_layer_saves_its_cycles_and_costs_cpu_time(tmp_path: Path) -> None:
    program = twin().program
    found = cost.measure(program, program.quantise_input(small.Random.of(4).pixels), 100.0)
    assert [c.layer for c in found.layers] == list(program.names)
    for c in found.layers:
        assert c.cpu_fastest_s <= c.cpu_s <= c.cpu_slowest_s
        whole = found.cycles / 1e8
        assert c.relative == pytest.approx((c.rest_cycles / 1e8 + c.cpu_s) / whole)
    # The convolutions are most of the work.
    by_name = {c.layer: c.rest_cycles for c in found.layers}
    assert by_name["conv2"] < by_name["fc1"] < found.cycles
    assert run_layer is cost.run_layer
    assert all(path.stat().st_size > 100 for path in cost.write(tmp_path, found))


# -- the command line


RUN = ["--test-images", "40", "--images", "3", "--device", "reference", "--workers", "0"]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["campaign", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@needs_data
def test_the_plan_is_the_closed_form() -> None:
    found = json.loads(invoke("plan", "--half-width", "0.02", "--share", "0.1", "--images", "8", "--json"))
    assert found["independent_inferences"] == planned_trials(0.02, 0.1)
    assert found["trials_by_correlation"]["1.0"] == planned_trials(0.02, 0.1)
    assert found["space"] == sum(found["parts"].values()) > 2e6


@needs_data
def test_a_campaign_is_run_reported_and_taken_up_by_name(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    first = json.loads(
        invoke("run", "x", *out, *RUN, "--arm", "original", "--arm", "p:protect=conv1+fc3", "--trials", "6", "--json")
    )
    assert first["trials"] == 6
    assert first["fingerprint"]["arms"]["p"]["protected"] == ["conv1", "fc3"]
    more = json.loads(invoke("run", "x", *out, "--workers", "0", "--trials", "9", "--json"))
    assert more["trials"] == 9
    assert more["fingerprint"] == first["fingerprint"]
    assert json.loads(invoke("report", "x", *out, "--json"))["rates"] == more["rates"]
    with pytest.raises(StoreError, match="images was 3, now 4"):
        invoke("run", "x", *out, "--workers", "0", "--images", "4")
    anew = json.loads(
        invoke("run", "x", *out, *RUN, "--restart", "--trials", "2", "--rate", "1e-3", "--site", "feature",
               "--per", "bit", "--json")
    )  # fmt: skip
    assert anew["trials"] == 2
    masked = sum(found["successes"] for found in anew["masked_at"]["original"].values())
    assert masked == anew["rates"]["original"]["masked"]["successes"]


@needs_data
def test_another_training_of_the_network_is_an_arm(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = models.lenet5(pretrained=True)
    with torch.no_grad():
        net.fc3.weight *= 0.9
    save_file(net.state_dict(), tmp_path / "other.safetensors")
    settings = Settings(arms=("original", f"other:weights={tmp_path / 'other.safetensors'}"), test_images=20, images=4)
    campaign = settings.campaign()
    a, b = (program.weights["fc3"] for program in campaign.programs.values())
    assert not np.array_equal(a, b)
    weights = [campaign.fingerprint["arms"][name]["weights"] for name in ("original", "other")]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"net": "lenet6"}, "no network 'lenet6'"),
        ({"device": "abacus"}, "no device 'abacus'"),
        pytest.param({"arms": ("a:protekt=conv1",)}, "an arm is NAME", marks=needs_data),
        pytest.param({"arms": ("a", "a")}, "two arms are called 'a'", marks=needs_data),
        pytest.param({"rate": 2.0}, "rate must be from 0 to 1", marks=needs_data),
        ({"rate": 0.1, "layers": ("fc1",)}, "layers= is for single faults"),
        ({"net": "alexnet"}, "takes photos"),
        ({"photos": "x"}, "not photos"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(CampaignError, match=match):
        Settings(**{"test_images": 20, **settings}).campaign()
