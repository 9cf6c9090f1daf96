"""Campaigns on a Ray cluster: the rows that processes give, whatever dies; without Ray, a plain error."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest

from host.campaign import cluster, pool
from host.campaign.campaign import STORE
from host.campaign.stop import Trials
from host.campaign.store import OutcomeRow, Store, StoreError, TrialRow
from tests.host.campaign import small
from tests.needs import needs_packages

ROOT = Path(__file__).parents[3]
TRIALS = 40
OUTCOME = attrgetter("number", "arm", "position")

needs_ray = needs_packages("ray", "ray")


def rows(folder: Path) -> list[tuple]:
    with Store(folder / STORE) as store:
        return store.rows()


def stored(folder: Path) -> int:
    try:
        with Store(folder / STORE) as store:
            return len(store.done())
    except StoreError:
        return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted campaign in one process."""
    folder = tmp_path_factory.mktemp("whole")
    small.run(folder, [Trials(TRIALS)], 0)
    return folder


def spawn(folder: Path, workers: int = 2) -> subprocess.Popen[str]:
    """A campaign on a cluster of its own, which lasts as long as it does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.host.campaign.small", str(folder), str(TRIALS), str(workers), "ray"],
        cwd=ROOT, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process has started, and those of theirs: command lines by id."""
    parents, commands = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return {child: commands[child] for child in found - {pid}}
        found |= more


def until(ready, limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < end, "too long"
        time.sleep(0.02)


# -- with Ray


@needs_ray
def test_a_cluster_gives_the_rows_of_processes(whole: Path, tmp_path: Path) -> None:
    process = spawn(tmp_path / "run")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert rows(tmp_path / "run") == rows(whole)
    with Store(whole / STORE) as mine, Store(tmp_path / "run" / STORE) as other:
        assert mine.fingerprint == other.fingerprint


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_a_worker_that_is_killed_leaves_no_trace(turn: int, whole: Path, tmp_path: Path) -> None:
    rng = random.Random(turn)
    process = spawn(tmp_path / "run")
    enough = rng.randrange(0, TRIALS // 2)
    until(lambda: stored(tmp_path / "run") >= enough and workers(process.pid))
    os.kill(rng.choice(workers(process.pid)), signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "a worker died; its trials are done again" in output
    assert rows(tmp_path / "run") == rows(whole)


@needs_ray
@pytest.mark.slow
def test_a_campaign_that_is_killed_is_taken_up_by_processes(whole: Path, tmp_path: Path) -> None:
    process = spawn(tmp_path / "run")
    until(lambda: stored(tmp_path / "run") >= 5)
    others = workers(process.pid)
    assert others
    process.kill()
    # Ray's own helpers notice it a minute later; until then they hold the pipe that `communicate` would read.
    assert process.stdout is not None
    process.stdout.close()
    process.wait()
    until(lambda: not any(alive(pid) for pid in others), 60)
    assert stored(tmp_path / "run") < TRIALS
    small.run(tmp_path / "run", [Trials(TRIALS)], 0)
    assert rows(tmp_path / "run") == rows(whole)


def workers(pid: int) -> list[int]:
    return [child for child, command in descendants(pid).items() if command.startswith("ray::Remote")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_ray
@pytest.mark.slow
def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path) -> None:
    process = spawn(tmp_path / "run", workers=10_000)
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "for as many --workers at most; 10000 were asked for" in output


# -- a worker, without a cluster around it


def test_a_worker_needs_nothing_but_the_files_it_is_sent(whole: Path, tmp_path: Path) -> None:
    campaign = small.campaign()
    campaign.prepare(tmp_path).close()
    setup = campaign.setup(tmp_path)
    files = cluster._files(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    remote = cluster.Remote(setup, files, cluster._versions())
    chunk = remote.work(7, 3)
    with Store(whole / STORE) as store:
        trials, outcomes = (
            store.query(f"SELECT {', '.join(kind._fields)} FROM {table} WHERE number BETWEEN 7 AND 9")
            for kind, table in ((TrialRow, "trial"), (OutcomeRow, "outcome"))
        )
    assert sorted(tuple(row) for row in chunk.trials) == sorted(trials)
    assert sorted(chunk.outcomes, key=OUTCOME) == sorted((OutcomeRow(*row) for row in outcomes), key=OUTCOME)


def test_a_worker_with_other_versions_is_refused(tmp_path: Path) -> None:
    campaign = small.campaign()
    campaign.prepare(tmp_path).close()
    remote = cluster.Remote(campaign.setup(tmp_path), cluster._files(tmp_path), {"numpy": "1.0"})
    with pytest.raises(pool.PoolError, match=r"has redline .*, the campaign's machine numpy 1\.0: install the same"):
        remote.work(0, 1)


# -- without Ray


def test_without_ray_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(pool.PoolError, match=r"not installed; run: pip install 'redline\[ray\]'"):
        small.run(tmp_path, [Trials(1)], None, "ray")


def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("nobody at 192.0.2.1:6379")

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(cluster, "load", lambda: fake)
    with pytest.raises(pool.PoolError, match=r"cannot start or find its cluster \(nobody at .*RAY_ADDRESS"):
        list(pool.run(None, [0], 1, executor="ray"))  # type: ignore[arg-type]


def test_an_unknown_executor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pool.PoolError, match="no executor 'abacus'; there are processes, ray"):
        small.run(tmp_path, [Trials(1)], 1, "abacus")  # type: ignore[arg-type]
