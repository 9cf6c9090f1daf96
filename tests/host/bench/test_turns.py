"""How contenders are timed: in turns, the first round not counted, by the median of processor time or another clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import pytest

from host.bench import turns


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


def test_shuffled_contenders_each_have_a_turn_a_round_in_orders_that_change_but_not_from_run_to_run() -> None:
    called: list[str] = []
    runs = []
    for _ in range(2):
        ticks = itertools.count(0.0, 7.0)
        called.clear()
        contenders = {name: partial(called.append, name) for name in "abcd"}
        result = turns.in_turns(contenders, 9, clock=partial(next, ticks), shuffled=True)
        assert result == dict.fromkeys("abcd", 7.0)
        runs.append("".join(called))
    rounds = [runs[0][at : at + 4] for at in range(0, 40, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 3
    assert runs[0] == runs[1]
