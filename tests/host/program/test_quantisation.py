"""Power-of-two quantisation against values computed by hand, and the fraction's search against all fractions."""

from __future__ import annotations

import numpy as np
import pytest

from host.program.quantisation import best_frac, dequantise, largest_safe_frac, quantise, quantise_bias


@pytest.mark.parametrize(
    ("value", "frac", "integer"),
    [(0.5, 0, 1), (-0.5, 0, 0), (1.5, 0, 2), (2.5, 0, 3), (-1.5, 0, -1), (-2.5, 0, -2), (0.4999, 0, 0), (0.125, 2, 1)],
)
def test_ties_go_to_plus_infinity(value: float, frac: int, integer: int) -> None:
    assert quantise(np.array([value]), frac).tolist() == [integer]
    assert quantise_bias(np.array([value]), np.array([frac])).tolist() == [integer]


@pytest.mark.parametrize(("value", "integer"), [(1e12, 2**31 - 1), (-1e12, -(2**31)), (2.0**31 - 1, 2**31 - 1)])
def test_biases_saturate_at_32_bits(value: float, integer: int) -> None:
    assert quantise_bias(np.array([value]), np.array([0])).tolist() == [integer]


@pytest.mark.parametrize(("beyond", "count"), [(0, 0), (1, 10), (2, 17_000), (3, 149_000), (4, 900_000)])
def test_a_tail_is_clipped_by_as_many_bits_as_lose_least(beyond: int, count: int) -> None:
    # By hand: 64 alone has fraction 0 (127 / 64 < 2). `count` values of 2**-beyond are lost at all fractions below
    # `beyond`, each with an error of 4**-beyond, and exact from it on; 64 is then clipped to 127 / 2**beyond.
    values = np.r_[np.full(count, 2.0**-beyond), 64.0]
    assert largest_safe_frac(values) == 0
    assert best_frac(values) == beyond
    # One such value less than pays for the clipping, and nothing is clipped.
    fewer = int((64 - 127 / 2**beyond) ** 2 * 4**beyond * 0.99)
    assert best_frac(np.r_[np.full(fewer, 2.0**-beyond), 64.0]) == 0


def test_nothing_but_zeros_has_no_fraction() -> None:
    assert best_frac(np.zeros(5)) is None
    assert largest_safe_frac(np.zeros(0)) is None


def test_integers_come_back_at_their_scales() -> None:
    assert dequantise(np.array([3, -4], np.int8), 1).tolist() == [1.5, -2.0]
    assert dequantise(np.array([3, -4], np.int8), np.array([-2, 2])).tolist() == [12.0, -1.0]
    assert dequantise(np.array([1], np.int8), 0).dtype == np.float32
