"""What is read is bounded before memory is taken, and is what it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hw.files import ReadError, parse_json, read_bytes, read_json


@pytest.mark.timeout(120)  # and not forever
def test_what_never_ends_or_is_too_long_is_not_read(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ReadError, match="not a plain file"):
            read_bytes(Path(device), 100)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ReadError, match="not a plain file"):
        read_bytes(pipe, 100)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReadError, match=f"{1 << 40} bytes, more than the 100"):
        read_bytes(sparse, 100)
    with pytest.raises(ReadError, match="no such file"):
        read_bytes(tmp_path / "absent", 100)
    with pytest.raises(ReadError, match="cannot be read"):
        read_bytes(tmp_path / ("x" * 300), 100)
    sparse.write_bytes(b"y" * 100)
    assert read_bytes(sparse, 100) == b"y" * 100


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "\xff", "9" * 5000, '{"a": 1}garbage', "\udc80"]
)
def test_texts_that_are_no_json_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="what it is: (damaged|no file of ours)"):
        parse_json(text, "what it is")
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ReadError, match="x.json"):
        read_json(path)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json") == value
