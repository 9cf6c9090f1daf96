"""A sealed object is read back as it was, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host.store.sealed import opened, read_sealed, sealed, write_sealed
from hw.files import ReadError

VALUE = {"predicted": [3, 1, 2], "right": 2, "nested": {"b": 0.1, "a": None}}


def test_an_object_comes_back_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    write_sealed(tmp_path / "x.json", VALUE)
    assert read_sealed(tmp_path / "x.json") == VALUE
    held = json.loads((tmp_path / "x.json").read_text())
    assert opened(dict(reversed(held.items())), "x") == VALUE
    assert sealed(sealed(VALUE)) == sealed(VALUE)


def test_every_change_of_a_value_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_sealed(path, VALUE)
    for change in (
        {"predicted": [0, 0, 0]}, {"predicted": [3, 1]}, {"right": 3}, {"right": 2.0000001}, {"right": "2"},
        {"nested": {"b": 0.1}}, {"more": 1}, {"sha256": "0" * 64}, {"sha256": None}, {"right": True},
    ):  # fmt: skip
        held = json.loads(path.read_text()) | change
        with pytest.raises(ReadError, match="damaged: its checksum does not match"):
            opened(held, "x.json")


@pytest.mark.parametrize("value", [None, [], "text", 3, {"right": 2}, {}])
def test_what_has_no_checksum_is_refused(value: object) -> None:
    with pytest.raises(ReadError, match="x.json: damaged"):
        opened(value, "x.json")
