"""A retraining that is killed again and again ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from host.store.files import PART
from host.training.checkpoint import checkpoint_weights
from tests.host.training import killed

ROOT = Path(__file__).parents[3]


def spawn(checkpoint: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.host.training.killed", str(checkpoint)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
    )  # fmt: skip


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in checkpoint_weights(checkpoint).items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_ten_kills_change_no_weight(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    killed.run(tmp_path / "whole")
    path, kills = tmp_path / "cut", 0
    while kills < 10:
        path.unlink(missing_ok=True) if kills == 5 else None  # some of the way to the end, twice
        with spawn(path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            before = path.stat().st_mtime_ns if path.exists() else 0
            while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else 0) == before:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
            process.kill()
        kills += process.returncode != 0
        if process.returncode == 0:
            path.unlink()
    killed.run(path)
    assert weights(path) == weights(tmp_path / "whole")
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(PART)] == []
