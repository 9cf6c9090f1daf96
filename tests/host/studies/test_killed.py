"""A study that is killed again and again ends with the same files, byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from host.store.files import PART
from tests.needs import needs_data

pytestmark = needs_data

ROOT = Path(__file__).parents[3]
COMMAND = (
    *(sys.executable, "-m", "host.cli", "sweep", "soft-errors", "--device", "emulator", "--rates", "0.001,0.01"),
    *("--test-images", "64", "--train-images", "640", "--seeds", "1"),
)
RESULTS = ("results.csv", "report.md", "report.html")


def spawn(out: Path, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [*COMMAND, "--out", str(out), "--name", name]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kept(folder: Path) -> int:
    return len([path for path in (folder / "state").glob("*") if not path.name.startswith(".")])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
def test_ten_kills_change_no_result(seed: int, tmp_path: Path) -> None:
    with spawn(tmp_path, "whole") as process:
        said, _ = process.communicate()
        assert process.returncode == 0, said.decode()
    rng, kills, folder = random.Random(seed), 0, tmp_path / "cut"
    while kills < 10:
        with spawn(tmp_path, "cut") as process:
            before = kept(folder)
            while process.poll() is None and kept(folder) == before:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.3)
            process.kill()
        kills += process.returncode != 0
        if process.returncode == 0:
            break  # it came to its end between two kills
    with spawn(tmp_path, "cut") as process:
        said, _ = process.communicate()
        assert process.returncode == 0, said.decode()
    assert kills >= 3
    for name in RESULTS:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(folder.rglob(f".*{PART}"))
