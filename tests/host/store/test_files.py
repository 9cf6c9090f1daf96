"""Files are complete or not there, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from host.store.files import PART, WriteError, sweep, write_atomic
from hw.errors import RedlineError

DIES = """
import os, sys
from pathlib import Path
from host.store import files
def stopped(descriptor):
    print("written", flush=True)
    import time; time.sleep(60)
os.fsync = stopped
files.write_atomic(Path(sys.argv[1]), "half")
"""


def writer(path: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing a file."""
    started = subprocess.Popen([sys.executable, "-c", DIES, str(path)], stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"written\n"
    return started


def test_what_a_killed_writer_left_is_cleaned_up_and_a_living_one_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "below" / "result.json"
    write_atomic(path, "before")
    with writer(path) as alive:
        sweep(tmp_path)
        write_atomic(path, "new")
        assert len(list(path.parent.iterdir())) == 2
        alive.send_signal(signal.SIGKILL)
        alive.wait()
    assert path.read_text() == "new"
    sweep(tmp_path)
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]
    with writer(path) as alive:
        alive.kill()
    write_atomic(path, "newer")
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


def test_a_sweep_leaves_the_files_of_others(tmp_path: Path) -> None:
    for name in (f"mine{PART}", ".hidden", f".other.{PART}x", "plain"):
        (tmp_path / name).touch()
    (tmp_path / f".link{PART}").symlink_to(tmp_path / "plain")
    before = sorted(path.name for path in tmp_path.iterdir())
    sweep(tmp_path)
    sweep(tmp_path, "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="hardware: no /dev/full")
def test_a_full_disk_and_a_folder_are_named_and_nothing_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"/dev/full: cannot be written: No space left.*free some space"):
        write_atomic(Path("/dev/full"), "more than fits" * 1000)
    assert Path("/dev/full").is_char_device()
    with pytest.raises(WriteError, match=r"cannot be written: Is a directory"):
        write_atomic(tmp_path, "text")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/below/x: cannot be written: Not a directory"):
        write_atomic(tmp_path / "file" / "below" / "x", "text")
    assert issubclass(WriteError, RedlineError)
    assert issubclass(WriteError, OSError)


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    write_atomic(tmp_path / "out", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "out").read_text() == "new"
