"""The overclocking benchmark measures every clock, and finds late bits where the period is short."""

from __future__ import annotations

from benchmarks import overclock


def test_a_small_measurement_is_complete() -> None:
    result = overclock.measure(shares=(None, 1.0, 0.8), batch=2, rounds=1)
    assert result["plain_cycles_per_second"] > 0
    none, safe, fast = result["clocks"]
    assert none["groups"] == safe["groups"] == {}
    assert "accumulator" in fast["groups"]
    assert all(clock["ratio"] > 0 for clock in result["clocks"])
