"""A trial again, on the RTL: where the probes see the fault, and what the campaign recorded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from pywellen import Waveform

from host.campaign.campaign import STORE, Campaign, CampaignError
from host.campaign.replay import replay
from host.campaign.space import Place
from host.campaign.stop import Trials
from host.campaign.store import Store
from host.campaign.trials import SingleFault
from host.campaign.waveform import command, show, signals, write_view
from host.devices import registry
from host.faults.models import SoftErrors
from host.faults.overclock import Overclock
from host.faults.stuck import StuckAt
from host.models import lenet5
from host.training.twin import attach
from hw.masks import MOST_GROUPS
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
    number = first_trial(folder, "t.layer = 'fc2'", "clp")
    found = replay(folder, number, arm="clp")
    assert (found.cycle, found.masked_at) == (None, ("fc2", "protected"))
    assert write_view(found) is None


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="no trial 40; there are 0 to 39"):
        replay(folder, 40)
    with pytest.raises(CampaignError, match="no arm 'x'; there are original, clp"):
        replay(folder, 0, arm="x")
    with pytest.raises(CampaignError, match="trial 0 has images 0 to 1, not 2"):
        replay(folder, 0, position=2)


def test_files_that_are_not_the_campaigns_are_never_replayed(folder: Path, tmp_path: Path) -> None:
    import shutil

    from host.campaign.worker import DATA, DamagedData, data_file
    from host.program.program import ProgramError

    def changed(name: str, content: bytes) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        return copy

    whole = (folder / DATA).read_bytes()
    wrong = bytearray(whole)
    wrong[-100] ^= 1
    other = data_file(np.zeros((20, 1, 28, 28), np.int8), np.zeros(20, np.int64))
    with pytest.raises(DamagedData, match="its checksum does not match; run the campaign's command again"):
        replay(changed(DATA, bytes(wrong)), 0)
    for content in (b"", whole[:1000], b"x" * 1000):
        with pytest.raises(DamagedData, match="run the campaign's command again"):
            replay(changed(DATA, content), 0)
    with pytest.raises(CampaignError, match="the images of another campaign"):
        replay(changed(DATA, other), 0)
    program = (folder / "programs" / "clp.safetensors").read_bytes()
    with pytest.raises(CampaignError, match="the program of arm 'original' is of another campaign"):
        replay(changed("programs/original.safetensors", program), 0)
    with pytest.raises(ProgramError, match="damaged"):
        replay(changed("programs/original.safetensors", program[:-1]), 0)


def test_a_record_that_the_rtl_contradicts_is_an_error(folder: Path, tmp_path: Path) -> None:
    import shutil
    import sqlite3

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    number = first_trial(copy, "NOT masked")
    with sqlite3.connect(copy / STORE) as db:
        db.execute("UPDATE outcome SET sdc1 = 1 - sdc1 WHERE number = ?", (number,))
    db.close()
    small.reseal(copy / STORE)
    with pytest.raises(CampaignError, match="goes otherwise on the RTL than on the campaign's device"):
        replay(copy, number)


def values(path: Path, name: str, times: list[int]) -> list[int]:
    """What a signal of the top holds at some times, in picoseconds."""
    (found,) = [var for var in Waveform(str(path)).all_vars() if var.full_name == f"redline_system.{name}"]
    return [int(found.signal.value_at(time)) for time in times]


@pytest.mark.slow
def test_the_waveform_shows_the_fault_where_the_view_points(folder: Path, tmp_path: Path) -> None:
    number = first_trial(folder, "site = 'mac' AND NOT masked AND t.layer = 'conv2'")
    found = replay(folder, number, waves=tmp_path)
    assert isinstance(found.place, Place)
    assert found.time_ns is not None
    view = write_view(found)
    assert view is not None
    text = view.read_text()
    marker = 1000 * found.time_ns
    assert f'[dumpfile] "{found.waves[0]}"' in text
    assert f"*-16.000000 {marker} {marker + 10_000} -1 " in text
    assert f"[timestart] {marker - 200_000}\n" in text
    # All that the view lists is in the waveform; the bits behind a name are the view's way to write a vector.
    faulty, clean = found.waves
    there = {var.full_name for var in Waveform(str(faulty)).all_vars()}
    listed = [name for names in signals(found.config).values() for name in names]
    assert all(name in text and name.partition("[")[0] in there for name in listed)
    # The flip stands from the marker on, in that lane's accumulator and nowhere else; until then the runs are alike.
    before, at = (values(path, "probe_acc", [marker - 1, marker]) for path in (faulty, clean))
    assert before[0] == at[0]
    channel = found.place.output // 100  # conv2 has 10 x 10 outputs a channel
    assert before[1] ^ at[1] == 1 << (32 * (channel % 16) + found.place.bit)
    # A simulator that was cut off leaves a half-written file's companions.
    assert {path.suffix for path in tmp_path.iterdir()} == {".fst", ".gtkw"}


def test_a_view_is_opened_where_there_is_a_viewer_and_a_display(tmp_path: Path) -> None:
    view = tmp_path / "a view.gtkw"
    assert command(view) == f"gtkwave '{view}'"
    assert show(view, {"PATH": str(tmp_path), "DISPLAY": ":0"}).startswith("not opened: no gtkwave here")
    viewer, seen = tmp_path / "gtkwave", tmp_path / "seen"
    viewer.write_text(f'#!/bin/sh\necho "$1" > {seen}.part && mv {seen}.part {seen}\n')
    viewer.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    assert show(view, {"PATH": path}).startswith("not opened: no display here (DISPLAY and WAYLAND_DISPLAY")
    assert not seen.exists()
    assert show(view, {"PATH": path, "WAYLAND_DISPLAY": "wayland-0"}) == f"opened in {viewer}"
    for _ in range(200):
        if seen.exists():
            break
        time.sleep(0.05)
    assert seen.read_text().strip() == str(view)


@pytest.mark.slow
def test_late_and_stuck_bits_are_replayed_on_the_rtl(tmp_path: Path) -> None:
    """An accelerator of another build: room for late bits."""
    device = registry.device("reference", saboteur=True, overclock=MOST_GROUPS)
    pixels = small.Random.of(16).pixels
    twin = attach(lenet5(pretrained=True), device, calibrate=pixels)
    models = {
        "clock": Overclock(mhz=190),
        "stuck": SingleFault("stuck"),
        "both": StuckAt(lane=2, bit=3, value=1) + SoftErrors(1e-5, per="mac"),
    }
    for name, faults in models.items():
        Campaign(twin, faults, small.Random.of(20), 2, 1, "reference").run(Trials(8), tmp_path / name, workers=0)
        number = first_trial(tmp_path / name, "NOT masked")
        found = replay(tmp_path / name, number)
        assert found.cycle is not None
        assert found.differs["fc3"][0] > 0
        cycles = [c for spread in found.spread for _, _, c in spread.wrong.values() if c is not None]
        assert min(cycles) == found.cycle
        # Registers of the array are wrong, what they are given is not, in the first layer.
        assert found.spread[0].wrong["features"][0] == found.spread[0].wrong["weights"][0] == 0
        said = "\n".join(found.lines())
        assert {"clock": "190.0 MHz", "stuck": "stuck at", "both": "bit 3 of lane 2"}[name] in said
    with Store(tmp_path / "stuck" / STORE) as store:
        masked = store.query("SELECT number, position, layer, stage FROM outcome WHERE masked LIMIT 1")
    for number, position, layer, stage in masked:
        found = replay(tmp_path / "stuck", number, position=position)
        assert found.masked_at == (layer, stage)
        assert f"at stage {stage}" in found.lines()[-1]
