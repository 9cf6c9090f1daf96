"""Campaigns: stored once and for all, the same whatever happens to their processes, never mixed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from host.campaign import pool, stop
from host.campaign.campaign import STORE, Campaign, CampaignError, Interrupted
from host.campaign.stop import HalfWidth, Minutes, RuleError, Trials
from host.campaign.store import SCHEMA, OutcomeRow, Store, StoreError, TrialRow
from host.campaign.trials import SingleFault
from host.campaign.worker import Bench
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.stuck import StuckAt
from tests.host.campaign import small

ROOT = Path(__file__).parents[3]


def rows(folder: Path) -> list[tuple]:
    with Store(folder / STORE) as store:
        return store.rows()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted campaign of 60 trials, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    small.run(folder, [Trials(60)], 0)
    return folder


# -- what is stored


def test_every_trial_holds_every_arm_and_image(whole: Path) -> None:
    with Store(whole / STORE) as store:
        assert store.complete() == 60
        counts = store.query("SELECT number, arm, COUNT(*) FROM outcome GROUP BY number, arm")
    assert len(counts) == 120
    assert {count for _, _, count in counts} == {4}


def test_outcomes_are_those_of_the_device(whole: Path) -> None:
    """By hand: the plan on a device of our own, compared with what is stored."""
    campaign = small.campaign()
    for arm, program in campaign.programs.items():
        runtime = Runtime(program, ReferenceDevice(program.config))
        for number in range(0, 60, 7):
            trial = campaign.trials.trial(number)
            x, labels = campaign.quantised[trial.images], campaign.labels[trial.images]
            clean = runtime.forward(x).out["fc3"].reshape(4, 10).astype(int)
            faulty = runtime.forward(x, plan=trial.plan).out["fc3"].reshape(4, 10).astype(int)
            with Store(whole / STORE) as store:
                found = store.query(
                    "SELECT image, masked, sdc1, sdc5, top1, clean_top1 FROM outcome WHERE number = ? AND arm = ? "
                    "ORDER BY position",
                    (number, arm),
                )
            for i, (image, masked, sdc1, sdc5, top1, clean_top1) in enumerate(found):
                before = sorted(range(10), key=lambda c, i=i: (-clean[i, c], c))
                now = max(range(10), key=lambda c, i=i: (faulty[i, c], -c))
                assert image == trial.images[i]
                assert masked == (clean[i] == faulty[i]).all()
                assert (sdc1, sdc5) == (now != before[0], now not in before[:5])
                assert (top1, clean_top1) == (now == labels[i], before[0] == labels[i])


def test_faults_of_a_protected_layer_do_not_happen(whole: Path) -> None:
    with Store(whole / STORE) as store:
        found = store.query(
            "SELECT o.arm, o.masked, o.stage, COUNT(*) FROM outcome o JOIN trial t ON t.number = o.number "
            "WHERE t.layer = 'conv2' GROUP BY o.arm, o.masked, o.stage"
        )
    assert {(masked, stage) for arm, masked, stage, _ in found if arm == "clp"} == {(1, "protected")}
    assert not any(stage == "protected" for arm, _, stage, _ in found if arm == "original")


def test_what_is_masked_has_a_stage_and_nothing_else_has(whole: Path) -> None:
    with Store(whole / STORE) as store:
        assert store.query("SELECT COUNT(*) FROM outcome WHERE masked != (stage IS NOT NULL)") == [(0,)]
        assert store.query("SELECT COUNT(*) FROM outcome WHERE masked")[0][0] > 0
        assert store.query("SELECT COUNT(*) FROM outcome WHERE masked AND (sdc1 OR sdc5)") == [(0,)]


def test_rates_give_trials_without_places(tmp_path: Path) -> None:
    small.campaign(SoftErrors(1e-4, per="mac")).run(Trials(5), tmp_path, workers=0)
    with Store(tmp_path / STORE) as store:
        found = store.query("SELECT layer, bit, flips FROM trial")
    assert all(layer is None and bit is None and flips > 0 for layer, bit, flips in found)


def test_permanent_faults_hit_every_trial_but_not_protected_layers(tmp_path: Path) -> None:
    stuck = StuckAt(lane=1, bit=20, value=1)
    twins = small.twins(protect="conv1", overclock=16)
    twins["all"] = small.twins(overclock=16)["original"]
    twins["all"].protect(twins["all"].layers)
    campaign = Campaign(twins, stuck + SoftErrors(1e-6, per="mac"), small.Random.of(20), 4, 0, "reference")
    assert campaign.fingerprint["faults"]["parts"][0] == {
        "model": "StuckAt", "lane": 1, "bit": 20, "value": 1, "site": "accumulator",
    }  # fmt: skip
    campaign.run(Trials(4), tmp_path, workers=0)
    with Store(tmp_path / STORE) as store:
        masked = {arm: int(store.count("masked", arm).successes.sum()) for arm in store.arms}
    assert masked["all"] == 16
    assert masked["original"] == 0


# -- the same whatever happens


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_do_not_change_the_results(workers: int, whole: Path, tmp_path: Path) -> None:
    small.run(tmp_path, [Trials(60)], workers)
    assert rows(tmp_path) == rows(whole)


def test_a_longer_campaign_begins_with_the_shorter(whole: Path, tmp_path: Path) -> None:
    for trials in (7, 23, 60):
        assert small.campaign().run(Trials(trials), tmp_path, workers=0).trials == trials
    assert rows(tmp_path) == rows(whole)
    assert small.campaign().run(Trials(10), tmp_path, workers=0).trials == 60
    assert rows(tmp_path) == rows(whole)


def test_small_chunks_change_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHUNK", 1)
    campaign = small.campaign()
    campaign.prepare(tmp_path).close()
    bench = Bench(campaign.setup(tmp_path))
    with Store(tmp_path / STORE) as store:
        for number in reversed(range(60)):
            chunk = bench.run(number, 1)
            store.add(chunk.trials, chunk.outcomes)
            store.add(chunk.trials, chunk.outcomes)  # twice is once
    assert rows(tmp_path) == rows(whole)


def spawn(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.host.campaign.small", str(folder), str(trials), "2"],
        cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def stored(folder: Path) -> int:
    try:
        with Store(folder / STORE) as store:
            return len(store.done())
    except StoreError:
        return 0


def children(pid: int) -> list[int]:
    """Worker processes: those started by the spawn method."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except OSError:
        return False


def kill_and_resume(folder: Path, trials: int, rng: random.Random, whose: str, most: int = 99) -> int:
    """Kill a campaign, or one of its workers, at random moments, up to `most` times, until it is done."""
    killed = 0
    while True:
        process = spawn(folder, trials)
        before, limit = stored(folder), time.monotonic() + 120
        # Somewhere in the next few trials, or right at the start.
        enough = min(before + rng.randrange(0, 25), trials - 1)
        while process.poll() is None and stored(folder) < enough and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.2)
        workers = children(process.pid)
        if killed == most:
            pass
        elif whose == "campaign":
            process.kill()
        elif workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        killed += process.returncode < 0 if whose == "campaign" else b"a worker died" in output
        assert process.returncode in (0, -signal.SIGKILL if whose == "campaign" else 0), output.decode()
        for _ in range(200):
            if not any(alive(pid) for pid in workers):
                break
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers), "orphans"
        if stored(folder) == trials:
            return killed


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, 60, random.Random(1), "worker") == 1
    assert rows(tmp_path) == rows(whole)


def test_a_campaign_that_is_killed_is_taken_up_row_for_row(whole: Path, tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, 60, random.Random(2), "campaign", most=1) == 1
    assert rows(tmp_path) == rows(whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("turn", range(20))
@pytest.mark.parametrize("whose", ["worker", "campaign"])
def test_killed_at_random_moments_twenty_times(whose: str, turn: int, whole: Path, tmp_path: Path) -> None:
    """Each turn is a campaign of its own, with one kill at a moment of its own, and is compared as a whole."""
    rng = random.Random(f"{whose} {turn}")
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        killed = kill_and_resume(folder, 60, rng, whose, most=1)
        assert rows(folder) == rows(whole)
        if killed:
            return
        # It came after the last trial and hit nothing: once more.
    pytest.fail("no kill hit a campaign that was running")


def test_ctrl_c_stores_what_is_being_worked_on(whole: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        if done >= 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after"):
        small.campaign().run(Trials(60), tmp_path, workers=0, progress=interrupt)
    assert 10 <= len(rows(tmp_path)) < len(rows(whole))
    with Store(tmp_path / STORE) as store:
        assert [reason for *_, reason in store.sessions()] == ["interrupted"]
    small.campaign().run(Trials(60), tmp_path, workers=0)
    assert rows(tmp_path) == rows(whole)


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_all_processes_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    process = spawn(tmp_path, 2000)
    while stored(tmp_path) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert b"Interrupted: stopped after" in output
    assert process.returncode != 0
    small.run(tmp_path, [Trials(60)], 0)
    assert [row for row in rows(tmp_path) if row[0] < 60] == rows(whole)


def test_a_pool_whose_workers_always_die_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = small.campaign()
    campaign.prepare(tmp_path).close()
    stopping = threading.Event()

    def murder() -> None:
        while not stopping.wait(0.05):
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=murder)
    thread.start()
    try:
        with pytest.raises(pool.PoolError, match="workers died 3 times in a row"):
            list(pool.run(campaign.setup(tmp_path), range(60), 1))
    finally:
        stopping.set()
        thread.join()


def test_what_a_worker_meets_is_told(tmp_path: Path) -> None:
    campaign = small.campaign()
    campaign.prepare(tmp_path).close()
    (tmp_path / "programs" / "clp.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file"):
        list(pool.run(campaign.setup(tmp_path), range(60), 1))


# -- stop rules


def test_a_half_width_rule_stops_at_a_look_whatever_was_begun(tmp_path: Path) -> None:
    rule = HalfWidth(0.1, of="masked")
    results = []
    for name, workers in (("a", 0), ("b", 2)):
        finished = small.campaign().run([rule, Trials(400)], tmp_path / name, workers=workers)
        results.append((finished, rows(tmp_path / name)))
    assert results[0] == results[1]
    trials = results[0][0].trials
    assert trials in stop.looks(0, 400)
    assert trials < 400
    # Killed before the look was noted: a store with trials beyond it.
    small.campaign().run(Trials(trials + 13), tmp_path / "c", workers=0)
    with sqlite3.connect(tmp_path / "c" / STORE) as db:
        db.execute("UPDATE meta SET value = '0' WHERE key = 'settled'")
    db.close()
    small.reseal(tmp_path / "c" / STORE)
    assert small.campaign().run(rule, tmp_path / "c", workers=0) == results[0][0]
    assert rows(tmp_path / "c") == results[0][1]
    # A narrower one goes on from there; a wider one takes nothing away.
    narrower = small.campaign().run([HalfWidth(0.06, of="masked"), Trials(500)], tmp_path / "c", workers=0)
    assert narrower.trials > trials
    longer = rows(tmp_path / "c")
    assert small.campaign().run(HalfWidth(0.2, of="masked"), tmp_path / "c", workers=0).trials == narrower.trials
    assert rows(tmp_path / "c") == longer


def test_all_faults_of_a_small_space_are_tried_and_then_it_ends(tmp_path: Path) -> None:
    finished = small.campaign(SingleFault("feature", ("fc3",)), images=2).run(HalfWidth(1e-4), tmp_path, workers=0)
    assert finished.trials == 80
    assert finished.reason == "every single fault was tried"


def test_time_is_a_budget(tmp_path: Path) -> None:
    finished = small.campaign().run(Minutes(0.02), tmp_path, workers=0)
    assert finished.reason == "time is up"
    assert finished.trials > 0


def test_sequential_stopping_keeps_the_coverage() -> None:
    """Faults of one image each, looked at as campaigns do, until the half-width is met."""
    from host.campaign.store import Counted

    rng = np.random.default_rng(9)
    for share, width in ((0.1, 0.03), (0.4, 0.05)):
        rule, inside, runs = HalfWidth(width), 0, 400
        for _ in range(runs):
            hits = (rng.random(3000) < share).astype(np.int64)
            counted = Counted(np.arange(3000), hits, np.ones(3000, np.int64))
            trials = next(n for n in stop.looks(0, 3000) if rule.met([counted], n))
            from host.stats import Clustered

            low, high = Clustered.of(hits[:trials], np.ones(trials, np.int64)).interval
            inside += low <= share <= high
        assert inside / runs > 0.92


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: HalfWidth(0.0), "half-width must be"),
        (lambda: HalfWidth(0.1, of="luck"), "no outcome 'luck'"),
        (lambda: Trials(0), "at least one trial"),
        (lambda: Minutes(0), "more than 0 minutes"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, match: str) -> None:
    with pytest.raises(RuleError, match=match):
        make()


# -- never mixed


def test_a_changed_parameter_is_refused_and_named(tmp_path: Path) -> None:
    small.campaign().run(Trials(3), tmp_path, workers=0)
    before = rows(tmp_path)
    base = small.campaign()
    wider = small.twins()
    wider["clp"].protect(["conv1"])
    cases = {
        "seed was 3, now 4": replace(base, seed=4),
        "images was 4, now 5": replace(base, images=5),
        r"faults.sites was \['mac', 'weight', 'feature', 'input'\], now \['mac'\]": replace(base, faults=SingleFault()),
        "arms.original.weights was": Campaign(small.twins(seed=1), base.faults, base.data, 4, 3, "reference"),
        r"arms.clp.protected was \['conv2'\], now \['conv1'\]": replace(base, arms=wider),
        "data.images was 60, now 61": replace(base, data=small.Random.of(61)),
        "data.sha256 was": replace(base, data=small.Random.of(60, seed=8)),
        "device.memory_bytes was None, now 134217728": replace(base, options={"memory_bytes": 1 << 27}),
    }
    for match, changed in cases.items():
        with pytest.raises(StoreError, match=match):
            changed.run(Trials(6), tmp_path, workers=0)
    assert rows(tmp_path) == before


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    small.campaign().run(Trials(3), tmp_path, workers=0)
    path = tmp_path / STORE
    raw = bytearray(path.read_bytes())
    raw[:16] = b"not a database!!"
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"file is not a database; if the file is damaged, delete it"):
        small.campaign().run(Trials(3), tmp_path, workers=0)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("UPDATE outcome SET masked = 1 - masked WHERE number = 1", "the checksum of trial 1"),
        ("UPDATE outcome SET image = image + 1 WHERE number = 0 AND position = 0", "the checksum of trial 0"),
        ("UPDATE outcome SET top1 = 'x' WHERE number = 2 AND position = 0", "the checksum of trial 2"),
        ("DELETE FROM outcome WHERE number = 2", "the checksum of trial 2"),
        ("DELETE FROM outcome WHERE number = 1 AND position = 3", "the checksum of trial 1"),
        ("UPDATE trial SET digest = digest || '0' WHERE number = 2", "the checksum of trial 2"),
        ("UPDATE trial SET bit = bit + 1 WHERE number = 0", "the checksum of trial 0"),
        ("DELETE FROM seal WHERE number = 1", "the checksum of trial 1"),
        ("PRAGMA foreign_keys = OFF; DELETE FROM trial WHERE number = 2", "outcomes of trial 2, which is not there"),
        ("PRAGMA foreign_keys = OFF; DELETE FROM trial WHERE number = 0", "checksum of trial 1|outcomes of trial 0"),
        ("UPDATE meta SET value = '2' WHERE key = 'settled'", "the checksum of its description"),
        ("UPDATE meta SET value = replace(value, '4', '5') WHERE key = 'fingerprint'", "checksum of its description"),
        ("UPDATE meta SET value = '{' WHERE key = 'sha256'", "its sha256 cannot be read"),
        ("CREATE VIEW more AS SELECT * FROM trial", "its tables are others"),
        ("ALTER TABLE trial ADD COLUMN more", "its tables are others"),
        ("DROP TABLE session", "its tables are others"),
    ],
)
def test_a_changed_row_is_never_counted(damage: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / STORE
    with Store(path, {"arms": {"a": {}}, "images": 4}) as store:
        trials = [TrialRow(n, 1, f"{n}", "conv1", "mac", 3, 4, 5) for n in range(3)]
        store.add(
            trials, [OutcomeRow(n, "a", p, 5, 1, None, None, 0, 0, 1, 1, 1, 1) for n in range(3) for p in range(4)]
        )
    with sqlite3.connect(path) as db:
        db.executescript(damage)
    db.close()
    for fingerprint in (None, {"arms": {"a": {}}, "images": 4}):
        with pytest.raises(StoreError, match=f"damaged: .*({match}).*; restore a copy, or run anew"):
            Store(path, fingerprint)


def test_advice_for_what_is_not_damaged_loses_no_trial(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db", {"arms": {"a": {}}})
    trials = [TrialRow(n, 1, "x" * 1000) for n in range(200)]
    store._db.execute(f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0] + 2}")
    with pytest.raises(StoreError, match="is full; free some space and run this again: every trial") as full:
        store.add(trials, [])
    store._db.execute("PRAGMA max_page_count = 100000")
    store.add(trials, [])  # nothing of it had stayed
    assert len(store.done()) == 200
    store._db.execute("PRAGMA busy_timeout = 10")
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked; another process is writing to it: wait") as locked:
            store.add([TrialRow(999, 1, "")], [])
        other.execute("ROLLBACK")
    other.close()
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly database; mend the permissions") as readonly:
        store.add([TrialRow(999, 1, "")], [])
    store.close()
    for said in (full, locked, readonly):
        assert not any(word in str(said.value) for word in ("delete", "restart", "anew"))


def test_rows_that_come_while_a_store_is_verified_are_no_damage(tmp_path: Path) -> None:
    fingerprint = {"arms": {"a": {}}}

    def write() -> None:
        with Store(tmp_path / "s.db", fingerprint) as writer:
            for number in range(300):
                outcomes = [OutcomeRow(number, "a", at, 5, 1, None, None, 0, 0, 1, 1, 1, 1) for at in range(4)]
                writer.add([TrialRow(number, 1, "")], outcomes)

    with Store(tmp_path / "s.db", fingerprint) as reader:
        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            reader._verify()
        thread.join()
        assert len(reader.done()) == 300


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    small.campaign().run(Trials(3), tmp_path, workers=0)
    with sqlite3.connect(tmp_path / STORE) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.close()
    with pytest.raises(StoreError, match=f"version 99, this Redline reads {SCHEMA}"):
        Store(tmp_path / STORE)
    with pytest.raises(StoreError, match="no campaign there"):
        Store(tmp_path / "nothing.db")


@pytest.mark.slow
def test_two_processes_do_not_run_one_campaign(tmp_path: Path) -> None:
    process = spawn(tmp_path, 2000)
    try:
        while not stored(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(StoreError, match="another process is running this campaign"):
            small.campaign().run(Trials(3), tmp_path, workers=0)
    finally:
        process.kill()
        process.communicate()


def test_a_trial_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db", {"arms": {"a": {}}}) as store:
        trial = TrialRow(0, 1, "")
        good = OutcomeRow(0, "a", 0, 5, 1, None, None, 0, 0, 1, 1, 1, 1)
        with pytest.raises(StoreError, match="UNIQUE"):
            store.add([trial], [good, good])
    with Store(tmp_path / "s.db") as store:
        assert store.rows() == []


def test_arms_must_be_one_network(tmp_path: Path) -> None:
    from host import models
    from host.devices import registry
    from host.training.twin import attach

    device = registry.device("reference", lanes=8, vec=8, saboteur=True)
    other = attach(models.caffe_lenet(), device, calibrate=torch.rand(2, 1, 28, 28))
    with pytest.raises(CampaignError, match="different networks"):
        Campaign({**small.twins(), "other": other}, SingleFault(), small.Random.of(9), 4, 0, "reference")
    with pytest.raises(CampaignError, match="at least one network"):
        Campaign({}, SingleFault(), small.Random.of(9), 4, 0, "reference")
    with pytest.raises(CampaignError, match="an arm's name"):
        Campaign({"../x": small.twins()["clp"]}, SingleFault(), small.Random.of(9), 4, 0, "reference")
