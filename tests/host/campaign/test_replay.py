"""A trial again, on the RTL: where the probes see the fault, and what the campaign recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.campaign.campaign import STORE, Campaign, CampaignError
from host.campaign.replay import replay
from host.campaign.stop import Trials
from host.campaign.store import Store
from host.campaign.trials import SingleFault
from host.campaign.waveform import write_view
from host.devices import registry
from host.models import lenet5
from host.training.twin import attach
from tests.host.campaign import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials at every site; the accelerator is the default one, whose simulator other tests build, too."""
    folder = tmp_path_factory.mktemp("replayed")
    campaign("reference").run(Trials(40), folder, workers=0)
    return folder


def campaign(name: str, **options: object) -> Campaign:
    device = registry.device("reference", saboteur=True)
    pixels = small.Random.of(16).pixels
    twins = {
        "original": attach(lenet5(pretrained=True), device, calibrate=pixels),
        "clp": attach(lenet5(pretrained=True), device, calibrate=pixels, protect=["fc2"]),
    }
    faults = SingleFault(("mac", "weight", "feature", "input"))
    return Campaign(twins, faults, small.Random.of(20), 2, 1, name, options)


def first_trial(folder: Path, where: str, arm: str = "original") -> int:
    with Store(folder / STORE) as store:
        rows = store.query(
            f"SELECT t.number FROM trial t JOIN outcome o ON o.number = t.number AND arm = ? WHERE {where} LIMIT 1",
            (arm,),
        )
    assert rows, where
    return int(rows[0][0])


@pytest.mark.parametrize("name", [name for name in ("simulation", "emulator") if name in registry.device_names()])
def test_any_device_gives_the_same_rows(name: str, folder: Path, tmp_path: Path) -> None:
    options = {"processes": 1} if name == "simulation" else {}
    campaign(name, **options).run(Trials(10), tmp_path, workers=0)
    with Store(tmp_path / STORE) as store, Store(folder / STORE) as reference:
        assert store.rows() == [row for row in reference.rows() if row[0] < 10]


SHOWN = {"mac": "acc", "weight": "weights", "input": "features", "feature": "pool"}


@pytest.mark.parametrize("site", ["mac", "weight"])
def test_the_probes_see_the_fault_where_it_is_and_what_follows_later(site: str, folder: Path) -> None:
    found = replay(folder, first_trial(folder, f"site = '{site}' AND NOT masked"))
    assert found.place is not None
    layers = [spread.layer for spread in found.spread]
    at = layers.index(found.place.layer)
    # Nothing before the fault's layer, nothing in it before the fault's stage.
    assert not any(count for spread in found.spread[:at] for count, _, _ in spread.wrong.values())
    wrong = found.spread[at].wrong
    assert found.cycle == wrong[SHOWN[site]][2]
    assert wrong["features"][0] == 0
    if site == "mac":
        assert wrong["weights"][0] == 0
        assert wrong["requant"][0] <= 1  # one accumulator, one output
    cycles = [c for spread in found.spread[at:] for _, _, c in spread.wrong.values() if c is not None]
    assert min(cycles) == found.cycle
    # The final outputs that differ on the RTL are those that the runtime reads back.
    for spread in found.spread:
        assert spread.wrong["pool"][0] >= found.differs[spread.layer][0]
        assert (spread.wrong["pool"][0] > 0) == (found.differs[spread.layer][0] > 0)
    assert found.differs["fc3"][0] > 0
    assert found.masked_at is None
    assert f"cycle {found.cycle}" in "\n".join(found.lines())


def test_a_masked_fault_is_named_with_its_stage(folder: Path) -> None:
    number = first_trial(folder, "site = 'mac' AND masked AND stage IN ('requantise', 'relu')")
    with Store(folder / STORE) as store:
        rows = store.query(
            "SELECT position, layer, stage FROM outcome WHERE number = ? AND arm = 'original' AND masked", (number,)
        )
    position, layer, stage = rows[0]
    found = replay(folder, number, position=position)
    assert found.masked_at == (layer, stage)
    assert found.cycle is not None
    assert found.differs["fc3"][0] == 0
    assert f"masked in {layer} at stage {stage}" in found.lines()[-1]


def test_a_fault_in_a_protected_layer_is_nowhere_to_be_seen(folder: Path) -> None:
    number = first_trial(folder, "t.layer = 'fc2'", "clp") if _has(folder, "fc2") else None
    if number is None:
        pytest.skip("no trial hit fc2")
    found = replay(folder, number, arm="clp")
    assert (found.cycle, found.masked_at) == (None, ("fc2", "protected"))
    assert write_view(found) is None


def _has(folder: Path, layer: str) -> bool:
    with Store(folder / STORE) as store:
        return bool(store.query("SELECT 1 FROM trial WHERE layer = ?", (layer,)))


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="no trial 40; there are 0 to 39"):
        replay(folder, 40)
    with pytest.raises(CampaignError, match="no arm 'x'; there are original, clp"):
        replay(folder, 0, arm="x")
    with pytest.raises(CampaignError, match="trial 0 has images 0 to 1, not 2"):
        replay(folder, 0, position=2)


def test_a_record_that_the_rtl_contradicts_is_an_error(folder: Path, tmp_path: Path) -> None:
    import shutil
    import sqlite3

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    number = first_trial(copy, "NOT masked")
    with sqlite3.connect(copy / STORE) as db:
        db.execute("UPDATE outcome SET sdc1 = 1 - sdc1 WHERE number = ?", (number,))
    db.close()
    with pytest.raises(CampaignError, match="goes otherwise on the RTL than on the campaign's device"):
        replay(copy, number)


@pytest.mark.slow
def test_waveforms_and_a_view_of_the_fault_are_written(folder: Path, tmp_path: Path) -> None:
    found = replay(folder, first_trial(folder, "site = 'mac' AND NOT masked"), waves=tmp_path)
    assert [path.stat().st_size > 100_000 for path in found.waves] == [True, True]
    view = write_view(found)
    assert view is not None
    text = view.read_text()
    assert str(found.waves[0]) in text
    assert found.time_ns is not None
    assert f" {1000 * found.time_ns} " in text
    # A simulator that was cut off leaves a half-written file's companions.
    assert {path.suffix for path in tmp_path.iterdir()} == {".fst", ".gtkw"}
