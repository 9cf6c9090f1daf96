"""Networks on another device than the CPU, in a process of its own: torch never forgets a backend once it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("on_fake_device.py")


def test_all_follows_a_network_to_another_device() -> None:
    command = [sys.executable, "-m", "pytest", str(FILE), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=FILE.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
