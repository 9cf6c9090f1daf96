"""The build cache publishes whole entries or none, once, and explains a disk it cannot use."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from sim.cache import SUMS, BuildError, _verified, cache_directory, cached, digest


def everything_in(folder: Path) -> set[str]:
    """Paths below `folder`, without the cache's lock and checksums."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in ("lock", SUMS)}


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "product").write_text("whole")

    first, second = (cached("kind", "key", make, directory=tmp_path) for _ in range(2))
    assert first == second == tmp_path / "kind" / "key"
    assert (first / "product").read_text() == "whole"
    assert len(made) == 1


def test_two_builders_of_one_entry_make_it_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)

    threads = [
        threading.Thread(target=cached, args=("kind", "key", make), kwargs={"directory": tmp_path}) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failed_build_publishes_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise BuildError("the compiler failed")

    with pytest.raises(BuildError, match="the compiler failed"):
        cached("kind", "key", make, directory=tmp_path)
    assert everything_in(tmp_path) == {"kind"}


def test_a_full_disk_is_named_and_leaves_nothing_half_published(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BuildError, match=rf"no space left in the cache folder {tmp_path}: free some.*REDLINE_CACHE"):
        cached("kind", "key", make, directory=tmp_path)
    assert everything_in(tmp_path) == {"kind"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BuildError, match=r"cannot be written \(Permission denied\): mend its permissions"):
        cached("kind", "key", lambda _: None, directory=tmp_path)


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(BuildError, match=r"cache cannot be used.*point REDLINE_CACHE elsewhere"):
        cached("kind", "key", lambda _: None, directory=tmp_path / "cache")


def test_what_a_killed_builder_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "building-dead").mkdir()
    (tmp_path / "building-dead" / "half").write_text("half")
    cached("kind", "key", lambda _: None, directory=tmp_path)
    assert everything_in(tmp_path) == {"kind", "kind/key"}


def test_the_key_depends_on_every_part() -> None:
    keys = {digest(parts) for parts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1})}
    assert len(keys) == 4
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CACHE", "/some/where")
    assert cache_directory() == Path("/some/where")
    monkeypatch.delenv("REDLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/redline")


def product(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "product").write_text("whole")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip(entry / "below" / "product"),
        lambda entry: (entry / "below" / "product").write_text(""),
        lambda entry: (entry / "below" / "product").unlink(),
        lambda entry: (entry / "more").touch(),
        lambda entry: (entry / SUMS).unlink(),
        lambda entry: flip(entry / SUMS),
        lambda entry: (entry / SUMS).write_bytes(b"\xff\xfe"),
        lambda entry: shutil.rmtree(entry / "below"),
        lambda entry: (entry / "dangling").symlink_to("nowhere"),
        lambda entry: (shutil.rmtree(entry), entry.symlink_to(entry.parent)),
        lambda entry: (shutil.rmtree(entry), entry.touch()),
    ],
)
def test_a_bad_entry_is_built_anew_with_a_warning(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = cached("kind", "key", product, directory=tmp_path)
    damage(entry)
    _verified.clear()  # as another process
    assert cached("kind", "key", product, directory=tmp_path) == entry
    assert (entry / "below" / "product").read_text() == "whole"
    assert f"{entry} is damaged or was changed" in caplog.text
    assert everything_in(tmp_path) == {"kind", "kind/key", "kind/key/below", "kind/key/below/product"}
    assert (entry / SUMS).read_text().endswith("  below/product\n")


def test_damage_that_shows_is_noticed_in_the_same_process(tmp_path: Path) -> None:
    entry = cached("kind", "key", product, directory=tmp_path)
    (entry / "below" / "product").write_text("half")
    cached("kind", "key", product, directory=tmp_path)
    assert (entry / "below" / "product").read_text() == "whole"


def test_an_entry_is_read_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cached("kind", "key", product, directory=tmp_path)
    assert cached("kind", "key", product, directory=tmp_path) == entry
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert cached("kind", "key", product, directory=tmp_path) == entry
