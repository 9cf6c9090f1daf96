"""A lock follows no link, changes no file, waits for nothing but its holder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from host.campaign.campaign import _alone
from host.campaign.store import StoreError
from sim.cache import BuildError, cached
from sim.lock import locked


def test_a_lock_excludes_others_and_is_given_back(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
    order = []
    with locked(tmp_path / "lock"):

        def second() -> None:
            with locked(tmp_path / "lock"):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("target", ["victim", "absent"])
def test_a_link_is_refused_by_every_lock_and_its_target_left_alone(target: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("lock", ".lock"):
        (tmp_path / name).symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="the lock is a link; delete the link"), locked(tmp_path / "lock"):
        pass
    with pytest.raises(StoreError, match="the lock is a link"), _alone(tmp_path):
        pass
    with pytest.raises(BuildError, match="the lock is a link"):
        cached("kind", "key", lambda folder: None, directory=tmp_path)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_a_hard_link_and_what_is_in_a_lock_are_not_emptied(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / ".lock")
    with _alone(tmp_path):
        pass
    assert victim.read_text() == "precious"


def test_a_pipe_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="not a plain file|Is a directory"), locked(tmp_path / name):
            pass
