"""Where curves tip over: exact on made-up curves, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from host.studies.tipping import crossing, tips

CLOCKS = [100.0, 110.0, 120.0, 130.0]


def outcomes(accuracy: list[float], images: int, seeds: int = 1) -> np.ndarray:
    """Right answers with exactly these accuracies: the same images fail first at every clock."""
    order = np.arange(images)
    return np.stack([[order < round(share * images) for share in accuracy]] * seeds)


def test_a_crossing_is_interpolated_between_the_clocks_around_it() -> None:
    clocks = np.array(CLOCKS)
    assert crossing(clocks, np.array([0.9, 0.9, 0.8, 0.1]), 0.85) == pytest.approx(115)
    assert crossing(clocks, np.array([0.9, 0.9, 0.9, 0.9]), 0.85) == np.inf
    assert crossing(clocks, np.array([0.5, 0.4, 0.3, 0.2]), 0.85) == 100
    # The first fall counts, also if the curve rises again.
    assert crossing(clocks, np.array([0.9, 0.8, 0.9, 0.1]), 0.85) == pytest.approx(105)


def test_tips_and_gains_of_made_up_curves() -> None:
    curves = {
        "original": outcomes([0.90, 0.80, 0.40, 0.10], 1000),
        "TWA": outcomes([0.90, 0.90, 0.80, 0.40], 1000, seeds=3),
        "TWA+CLP": outcomes([0.90, 0.90, 0.90, 0.90], 1000, seeds=3),
    }
    clean = outcomes([0.9], 1000)[0, 0]
    tipped, gains = tips(CLOCKS, curves, clean, drop=0.01, resamples=200)
    assert tipped["original"].mhz == pytest.approx(101)
    assert tipped["TWA"].mhz == pytest.approx(111)
    assert tipped["TWA+CLP"].censored
    assert tipped["TWA+CLP"].mhz == 130
    assert str(tipped["TWA+CLP"]) == ">= 130.0 MHz"
    for tip in tipped.values():
        assert tip.low <= tip.mhz <= tip.high
    assert gains["original"] == (0, 0, 0)
    gain, low, high = gains["TWA"]
    assert gain == pytest.approx(111 / 101 - 1)
    assert low <= gain <= high


def test_the_interval_of_a_tip_covers_the_true_one() -> None:
    """Images answered independently: about 95 of 100 intervals must hold the clock of the true curve."""
    true = np.array([0.90, 0.89, 0.80, 0.50])
    want = crossing(np.array(CLOCKS), true, 0.90 - 0.05)
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(100):
        luck = generator.random(400)
        # One luck an image, for all clocks: as networks do, an image fails from some clock on.
        right = (luck[None, :] < true[:, None])[None]
        tipped, _ = tips(CLOCKS, {"original": right}, luck < 0.90, drop=0.05, resamples=200, seed=trial)
        covered += tipped["original"].low <= want <= tipped["original"].high
    assert 88 <= covered <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(1)
    curves = {"original": generator.random((2, 4, 300)) < np.array([0.9, 0.9, 0.7, 0.2])[None, :, None]}
    clean = generator.random(300) < 0.9
    assert tips(CLOCKS, curves, clean, resamples=100) == tips(CLOCKS, curves, clean, resamples=100)
