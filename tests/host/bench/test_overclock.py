"""The overclocking benchmark measures every clock, on the reference's bytes, and finds late bits at short periods."""

from __future__ import annotations

from host.bench import overclock


def test_a_small_measurement_is_complete() -> None:
    result = overclock.measure(shares=(None, 1.0, 0.8), batch=2, rounds=1)
    assert set(result) == {"plain_cycles_per_second", "batch", "clocks"}
    none, safe, fast = result["clocks"]
    assert none["groups"] == safe["groups"] == {}
    assert "accumulator" in fast["groups"]
    assert all(clock["same_bytes"] is True for clock in result["clocks"])
