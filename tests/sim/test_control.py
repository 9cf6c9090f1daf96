"""The control page: both sides of it see the same bytes."""

from __future__ import annotations

from pathlib import Path

from sim import control
from tests.cxx import layouts


def test_the_simulators_struct_is_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "control.h").write_text(control.header())
    names = [field.name for field in control.FIELDS]
    size, places = layouts(tmp_path / "control.h", {"Control": names}, tmp_path)["Control"]
    assert control.DTYPE.fields is not None
    assert size == control.DTYPE.itemsize <= control.PAGE_BYTES
    assert places == {name: (control.DTYPE.fields[name][1], control.DTYPE.fields[name][0].itemsize) for name in names}
