"""How contenders are timed: in turns, the first round not counted, by the median of processor time."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from benchmarks import turns


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        (range(1000), {"a": 1.0, "b": 1.0}),
        ([100, 200, 0, 3, 0, 5, 0, 4, 0, 9, 0, 2, 0, 5], {"a": 3.0, "b": 5.0}),
    ],
    ids=["even", "uneven"],
)
def test_contenders_take_turns_and_the_first_round_does_not_count(
    clock: Iterable[int], expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    ticks = iter(clock)
    monkeypatch.setattr(turns, "time", SimpleNamespace(process_time=lambda: float(next(ticks))))
    result = turns.in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 4
    assert result == expected
