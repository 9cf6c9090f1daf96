"""Intervals and tests against published and independently computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from host.stats import Rate, paired


def test_wilson_interval_matches_newcombes_published_example() -> None:
    # Newcombe 1998 (single proportions), 81/263: 0.2553 to 0.3662.
    low, high = Rate(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 20), (1, 29), (15, 148), (20, 20), (1900, 2000)])
def test_wilson_interval_matches_scipy(successes: int, trials: int) -> None:
    wanted = scipy_stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert Rate(successes, trials).interval == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for successes in rng.binomial(200, 0.9, 2000):
        low, high = Rate(int(successes), 200).interval
        inside += low <= 0.9 <= high
    assert 0.93 <= inside / 2000 <= 0.97


def test_a_rate_without_trials_is_rejected() -> None:
    with pytest.raises(ValueError, match="trials >= 1, not 0/0"):
        Rate(0, 0)


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(1000):
        # right under both 75 %, only second 15 %, only first 5 %, neither 5 %: true difference 0.10
        cell = rng.choice(4, 300, p=[0.75, 0.15, 0.05, 0.05])
        low, high = paired((cell == 0) | (cell == 2), cell <= 1).interval
        inside += low <= 0.10 <= high
    assert 0.93 <= inside / 1000 <= 0.98


def test_mcnemar_counts_only_discordant_images() -> None:
    first = np.array([True] * 500 + [False] * 10)
    second = np.array([True] * 500 + [True] * 9 + [False])
    result = paired(first, second)
    assert (result.gained, result.lost) == (9, 0)
    assert result.p_value == pytest.approx(2 / 2**9)


def test_equal_treatments_do_not_differ() -> None:
    same = np.array([True, False, True])
    result = paired(same, same)
    assert result.p_value == 1.0
    assert result.interval[0] <= 0.0 <= result.interval[1]


def test_samples_of_different_length_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"one length, not \(2,\) and \(3,\)"):
        paired(np.ones(2, bool), np.ones(3, bool))
