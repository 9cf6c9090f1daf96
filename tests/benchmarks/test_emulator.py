"""The emulator's benchmark: it overclocks as far as it says, and counts what it names. Times are not asserted."""

from __future__ import annotations

import pytest

from benchmarks import emulator


def test_the_clock_of_the_headline_makes_only_accumulators_late_in_few_groups() -> None:
    conditions = emulator._conditions(emulator._random_table())
    banks = conditions.banks(emulator.CONFIG)
    assert set(banks) == {"accumulator"}
    assert 1 <= banks["accumulator"].groups <= emulator.MOST_GROUPS
    assert conditions.clock is not None
    faster = conditions.at(conditions.clock.period_ps - conditions.clock.table.onset_ps // 50).banks(emulator.CONFIG)
    assert set(faster) != {"accumulator"} or faster["accumulator"].groups > emulator.MOST_GROUPS


def test_a_training_step_is_timed_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, _ = emulator.STEPS["lenet5"]
    monkeypatch.setitem(emulator.STEPS, "lenet5", (make, shape, 1))
    row = emulator._step("lenet5", lambda _: None)
    assert row["step_over_fp32"] == pytest.approx(row["int8_ms"] / row["fp32_ms"], rel=0.01)
