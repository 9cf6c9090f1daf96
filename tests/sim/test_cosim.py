"""The co-simulation benchmark: the plain loop computes the same, and the goal for its speed is met."""

from __future__ import annotations

import pytest

from host.bench.cosim import measure


def test_a_small_measurement_is_complete_and_checks_that_both_compute_the_same() -> None:
    result = measure(batch=2, rounds=1)
    assert set(result) >= {
        "raw_cycles_per_second", "cosim_cycles_per_second", "ratio", "images_per_second", "mac_utilisation",
        "launch_overhead_us",
    }  # fmt: skip
    assert all(value > 0 for value in result.values())


@pytest.mark.slow
def test_the_cosimulation_reaches_most_of_the_plain_loops_speed() -> None:
    assert measure()["ratio"] >= 0.85
