"""Clocks and stuck bits in campaigns: the same rows on any device, stored whole, named, never mixed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from host.campaign import report
from host.campaign.analyses import sensitivity
from host.campaign.campaign import FAULTS, STORE, Campaign, CampaignError, preferred_device
from host.campaign.masking import STAGES
from host.campaign.replay import _setup
from host.campaign.settings import Settings
from host.campaign.space import SpaceError, StuckSpace
from host.campaign.stop import HalfWidth, Trials
from host.campaign.store import Store, StoreError
from host.campaign.trials import Faults, SingleFault, TrialSequence
from host.cli import app
from host.devices.emulator import native
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.overclock import BeyondModel, Overclock
from host.faults.stuck import StuckAt
from host.store.sealed import write_sealed
from hw.config import Config
from hw.masks import MOST_GROUPS
from tests.host.campaign import small
from tests.host.campaign.test_report import needs_data

MODELS: dict[str, Faults] = {
    "every site": small.ANYWHERE,
    "per mac": SoftErrors(3e-5, per="mac"),
    "per bit": SoftErrors(3e-5),
    "clock": Overclock(mhz=190),
    "stuck": StuckAt(lane=1, bit=9, value=1),
    "any stuck": SingleFault("stuck"),
    "all": Overclock(mhz=188) + SoftErrors(1e-5, per="mac") + StuckAt(lane=3, bit=4, value=0, site="tree_2_1"),
}


def campaign(faults: Faults, device: str = "reference", images: int = 3, data: int = 20, **more: object) -> Campaign:
    twins = small.twins(overclock=MOST_GROUPS)
    return Campaign(twins, faults, small.Random.of(data), images, 3, device, **more)  # type: ignore[arg-type]


def rows(folder: Path) -> list[tuple]:
    with Store(folder / STORE) as store:
        return store.rows()


@pytest.mark.parametrize("name", MODELS)
def test_the_emulator_gives_the_references_rows(name: str, tmp_path: Path) -> None:
    for device in ("reference", "emulator"):
        campaign(MODELS[name], device).run(Trials(6), tmp_path / device, workers=0)
    found = rows(tmp_path / "emulator")
    assert found == rows(tmp_path / "reference")
    assert len(found) == 6 + 2 * 6 * 3
    with Store(tmp_path / "emulator" / STORE) as store:
        # All kinds of outcomes would need more trials; that something happened, and that what is masked has a stage.
        assert store.query("SELECT COUNT(*) FROM outcome WHERE masked != (stage IS NOT NULL)") == [(0,)]
        assert store.query("SELECT COUNT(*) FROM outcome WHERE NOT masked")[0][0] > 0
        stages = {stage for (stage,) in store.query("SELECT DISTINCT stage FROM outcome WHERE masked")}
    assert stages <= set(STAGES)


def test_the_emulator_is_preferred_and_without_kernels_the_reference_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert preferred_device() == Settings().resolved().device == "emulator"
    assert campaign(small.ANYWHERE, "emulator").computed_by() == EmulatorDevice().describe()

    def none() -> None:
        raise native.KernelError("no C++ compiler found; install g++")

    monkeypatch.setattr(native, "load", none)
    assert Settings().resolved().device == "reference"
    assert "trials run on the reference, which is much slower: no C++ compiler found" in caplog.text
    assert Settings(device="emulator").resolved().device == "emulator"  # asked for: it says itself what computes
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert preferred_device() == "reference"
    assert campaign(small.ANYWHERE).computed_by() == "reference"


# -- stuck bits, each once


def test_every_stuck_bit_comes_once() -> None:
    config = Config(lanes=4, vec=8)
    space = StuckSpace(config)
    # By hand: an accumulator of 32 bits; sums of two, four and eight products of 16 bits.
    bits = 32 + 4 * 17 + 2 * 18 + 19
    assert space.size == 2 * 4 * bits == sum(space.part_sizes().values())
    places = [space.place(i) for i in range(space.size)]
    assert len(set(places)) == space.size
    assert {place.value for place in places} == {0, 1}
    assert {place.lane for place in places} == {0, 1, 2, 3}
    assert max(place.bit for place in places if place.bank == "tree_1_3") == 16
    assert {place.bank for place in places} == set(space.part_sizes())
    with pytest.raises(IndexError, match=f"place {space.size} of"):
        space.place(space.size)


def test_the_first_stuck_bits_are_uniform_over_lanes_bits_and_values() -> None:
    program = next(iter(campaign(SingleFault("stuck")).programs.values()))
    trials = TrialSequence(program, SingleFault("stuck"), seed=5, images=1, data=10)
    places = [trials.trial(n).place for n in range(1200)]
    assert trials.most == 2 * 8 * 155
    assert len(set(places)) == 1200
    sizes = StuckSpace(program.config).part_sizes()
    banks = [sum(place.bank == name for place in places if place) for name in sizes]  # type: ignore[union-attr]
    assert stats.chisquare(banks, np.array(list(sizes.values())) / sum(sizes.values()) * 1200).pvalue > 1e-3
    for column, values in (("lane", 8), ("value", 2)):
        counts = np.bincount([getattr(place, column) for place in places], minlength=values)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_trials_of_stuck_bits_meet_one_each_in_every_image() -> None:
    trials = campaign(SingleFault("stuck")).trials
    drawn = [trials.trial(number) for number in range(50)]
    assert len({trial.place for trial in drawn}) == 50
    for trial in drawn:
        assert trial.plan.conditions is not None
        assert trial.plan.conditions.stuck == (trial.place,)
        assert (len(trial.plan), len(trial.images)) == (0, 3)


def test_the_store_says_which_bit_was_stuck(tmp_path: Path) -> None:
    made = campaign(SingleFault("stuck"))
    made.run(Trials(4), tmp_path, workers=0)
    with Store(tmp_path / STORE) as store:
        found = store.query("SELECT lane, bank, bit, value, layer, site, flips FROM trial ORDER BY number")
    assert found == [(*made.trials.trial(n).place, None, "stuck", 0) for n in range(4)]  # type: ignore[misc]
    assert "One stuck bit a trial" in report.about(report.summarise(tmp_path))
    by_bank = sensitivity.measure(tmp_path)
    assert sum(shares["sdc1"].clusters for shares in by_bank.by_layer.values()) == 4
    assert {site for site, _ in by_bank.by_bit} <= {"stuck at 0", "stuck at 1"}
    assert all(path.stat().st_size > 100 for path in sensitivity.write(tmp_path, by_bank))


def test_stuck_bits_are_drawn_alone() -> None:
    for arguments in ((("stuck", "mac"),), ("stuck", ("conv1",))):
        with pytest.raises(SpaceError, match="give the site stuck alone, without layers"):
            SingleFault(*arguments)


# -- a clock leaves nothing to be drawn


def test_under_a_clock_every_image_is_tried_once_and_then_it_ends(tmp_path: Path) -> None:
    made = campaign(MODELS["clock"], "emulator", images=3, data=20)
    seen = np.concatenate([made.trials.trial(n).images for n in range(7)])
    assert sorted(seen.tolist()) == list(range(20))
    assert len(made.trials.trial(6).images) == 2
    with pytest.raises(IndexError, match="trial 7 of 7"):
        made.trials.trial(7)
    finished = made.run(HalfWidth(1e-3), tmp_path, workers=0)
    assert (finished.trials, finished.reason) == (7, "every image was tried")
    summary = report.summarise(tmp_path)
    assert summary.rates["original"]["sdc1"].trials == 20
    # By hand, all images at once.
    assert isinstance(MODELS["clock"], Overclock)
    for arm, program in made.programs.items():
        runtime = Runtime(program, ReferenceDevice(program.config))
        clean = runtime.forward(made.quantised).out["fc3"].reshape(20, -1).argmax(1)
        faulty = runtime.forward(made.quantised, plan=MODELS["clock"].draw(program, 0, 20, 0)).out["fc3"]
        assert summary.rates[arm]["sdc1"].successes == (faulty.reshape(20, -1).argmax(1) != clean).sum()


def test_a_rate_beside_a_clock_is_drawn_anew_in_every_trial() -> None:
    trials = campaign(MODELS["all"], images=3, data=20).trials
    assert trials.most is None
    assert trials.trial(100).plan != trials.trial(101).plan
    assert trials.trial(100).plan.conditions == trials.trial(101).plan.conditions


@pytest.mark.parametrize("per", ["mac", "bit"])
def test_rates_zero_and_one_make_campaigns(per: Literal["mac", "bit"], tmp_path: Path) -> None:
    campaign(SoftErrors(0.0, per)).run(Trials(2), tmp_path / "0", workers=0)
    campaign(SoftErrors(1.0, per), images=1).run(Trials(1), tmp_path / "1", workers=0)
    with Store(tmp_path / "0" / STORE) as store:
        assert store.query("SELECT DISTINCT masked, stage FROM outcome") == [(1, "none")]
    with Store(tmp_path / "1" / STORE) as store:
        assert store.query("SELECT masked FROM outcome WHERE arm = 'original'") == [(0,)]


# -- kept whole, never mixed


@pytest.mark.parametrize("name", MODELS)
def test_the_kept_fault_model_gives_the_same_plans(name: str, tmp_path: Path) -> None:
    made = campaign(MODELS[name])
    made.prepare(tmp_path).close()
    again = _setup(tmp_path, json.loads(json.dumps(made.fingerprint)))
    program = again.program("original")
    assert again.trials(program, 20).trial(5).plan == made.trials.trial(5).plan


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "{}", '{"faults": 3}'])
def test_a_damaged_fault_model_is_refused(text: str, tmp_path: Path) -> None:
    made = campaign(MODELS["clock"])
    made.prepare(tmp_path).close()
    (tmp_path / FAULTS).write_text(text)
    with pytest.raises(CampaignError, match="faults.json: .*writes it anew"):
        _setup(tmp_path, made.fingerprint)


def test_the_fault_model_of_another_campaign_is_refused(tmp_path: Path) -> None:
    made = campaign(MODELS["clock"])
    made.prepare(tmp_path).close()
    write_sealed(tmp_path / FAULTS, {"faults": Overclock(mhz=187).spec()})
    with pytest.raises(CampaignError, match="the fault model of another campaign"):
        _setup(tmp_path, made.fingerprint)


def test_a_changed_clock_or_stuck_bit_is_refused_and_named(tmp_path: Path) -> None:
    base = campaign(MODELS["all"])
    base.run(Trials(1), tmp_path, workers=0)
    flips, bit = SoftErrors(1e-5, per="mac"), StuckAt(lane=3, bit=4, value=0, site="tree_2_1")
    clock = Overclock(mhz=188)
    cases = {
        r"faults.parts.0.period_ps was 5319, now 5263": Overclock(mhz=190) + flips + bit,
        r"faults.parts.0.voltage_scale was 1.0, now 1.01": Overclock(mhz=188, voltage_scale=1.01) + flips + bit,
        r"faults.parts.0.delay_table was": Overclock(mhz=188, table=_another_table()) + flips + bit,
        r"faults.parts.1.rate was 1e-05, now 2e-05": clock + SoftErrors(2e-5, per="mac") + bit,
        r"faults.parts.2.bit was 4, now 5": clock + flips + StuckAt(lane=3, bit=5, value=0, site="tree_2_1"),
        r"faults.model was 'Combined', now 'Overclock'": clock,
    }
    before = rows(tmp_path)
    for match, faults in cases.items():
        with pytest.raises(StoreError, match=match):
            campaign(faults).run(Trials(2), tmp_path, workers=0)
    assert rows(tmp_path) == before


def _another_table() -> Path:
    from sim.timing import shipped

    return shipped.path(seed=3)


# -- said


def test_reports_name_the_faults(tmp_path: Path) -> None:
    campaign(MODELS["all"]).run(Trials(2), tmp_path, workers=0)
    summary = report.summarise(tmp_path)
    said = report.about(summary)
    assert "a clock of 188.0 MHz (period 5319 ps" in said
    assert "soft errors, 1e-05 per mac (mac)" in said
    assert "bit 4 of lane 3's tree_2_1 stuck at 0" in said
    assert "on the reference device" in said
    report.write(tmp_path, summary)
    assert said in (tmp_path / "report.md").read_text()
    with pytest.raises(CampaignError, match="sensitivity is that of single faults"):
        sensitivity.measure(tmp_path)


# -- the command line


def invoke(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["campaign", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@needs_data
def test_clocks_and_stuck_bits_are_asked_for_by_options(tmp_path: Path) -> None:
    run = ["--out", str(tmp_path), "--workers", "0", "--test-images", "30", "--images", "3", "--trials", "2"]
    found = invoke(
        "run", "c", *run, "--mhz", "190", "--placement", "2", "--stuck", "0:5:1", "--stuck", "3:2:0:tree_3_0"
    )
    parts = found["fingerprint"]["faults"]["parts"]
    assert [part["model"] for part in parts] == ["Overclock", "StuckAt", "StuckAt"]
    assert parts[0]["period_ps"] == 5263
    assert parts[2] == {"model": "StuckAt", "lane": 3, "bit": 2, "value": 0, "site": "tree_3_0"}
    assert found["fingerprint"]["device"]["config"]["overclock"] == MOST_GROUPS
    with pytest.raises(StoreError, match="faults.parts.1.value was 1, now 0"):
        invoke("run", "c", *run, "--stuck", "0:5:0", "--stuck", "3:2:0:tree_3_0")
    alone = invoke("run", "s", *run, "--site", "stuck")
    assert alone["fingerprint"]["faults"] == {"model": "SingleFault", "sites": ["stuck"], "layers": []}
    assert alone["trials"] == 2


@needs_data
def test_analyses_take_a_clock_and_stuck_bits(tmp_path: Path) -> None:
    arguments = ["errors", "x", "--out", str(tmp_path), "--mhz", "195", "--stuck", "0:9:1", "--images", "24"]
    result = CliRunner().invoke(app, ["campaign", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "x" / "errors.csv").read_text().splitlines()))
    assert {row["layer"] for row in rows} == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    # Every layer uses lane 0.
    exact = {row["layer"]: float(row["share"]) for row in rows if row["class"] == "exact"}
    assert all(share < 1 for share in exact.values())


@needs_data
def test_plans_know_which_images_share_a_fault() -> None:
    shared = invoke("plan", "--images", "8", "--site", "stuck")
    assert shared["space"] == StuckSpace(Config()).size
    assert set(shared["trials_by_correlation"]) == {"1.0", "0.5", "0.2", "0.05", "0.0"}
    for options in (["--mhz", "190"], ["--rate", "1e-4"], ["--stuck", "0:5:1", "--rate", "1e-4"]):
        apart = invoke("plan", "--images", "8", *options)
        assert (apart["space"], set(apart["trials_by_correlation"])) == (0, {"0.0"})
        assert apart["trials_by_correlation"]["0.0"] == -(-apart["independent_inferences"] // 8)
    stored = invoke("plan", "--images", "8", "--rate", "1e-4", "--per", "bit")
    assert len(stored["trials_by_correlation"]) == 5


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"stuck": ("1:2",)}, CampaignError, r"a stuck bit is LANE:BIT:VALUE\[:BANK\], not '1:2'"),
        ({"stuck": ("1:2:x",)}, CampaignError, "a stuck bit is LANE"),
        ({"stuck": ("1:40:1",)}, CampaignError, "bit must be from 0 to 31, not 40"),
        ({"mhz": 190.0, "sites": ("weight",)}, CampaignError, "a clock and stuck bits are the whole accelerator's"),
        ({"mhz": -1.0}, CampaignError, "mhz must be positive"),
        ({"mhz": 900.0}, BeyondModel, "parts fail that the model does not cover"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _ = Settings(**settings).faults


def test_a_fixed_number_of_trials_belongs_to_conditions_only() -> None:
    program = next(iter(campaign(MODELS["clock"]).programs.values()))
    assert TrialSequence(program, MODELS["clock"], 0, 6, 20).most == 4
    assert TrialSequence(program, MODELS["per mac"], 0, 6, 20).most is None
