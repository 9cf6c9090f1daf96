"""PipeCNN's requantisation against its definition, written out in Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.program.pipecnn import requantise, stored_bias


def rhu(x: int, k: int) -> int:
    return (x + (1 << (k - 1))) >> k


def pipecnn(acc: int, s: int, bias: int, k: int, relu: bool) -> int:
    r = (acc >> (s - 1)) + 1
    if r >= 256:
        y = 127
    elif r < -256:
        y = -128
    else:
        y = (rhu(acc, s) + rhu(bias, k) + 128) % 256 - 128
    return max(y, 0) if relu else y


@given(
    st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-70_000, 70_000)),
    st.integers(1, 31),
    st.integers(-128, 127),
    st.integers(1, 12),
    st.booleans(),
)
def test_it_is_the_definition(acc: int, s: int, bias: int, k: int, relu: bool) -> None:
    stored = stored_bias(np.array([bias], np.int32), np.array([k]), 0)
    found = requantise(np.full((1, 1, 1, 1), acc, np.int32), np.array([s]), stored, relu)
    assert int(found[0, 0, 0, 0]) == pipecnn(acc, s, bias, k, relu)


@pytest.mark.parametrize(("edge", "s"), [(256, 4), (-257, 4), (255, 1), (-256, 7)])
def test_both_sides_of_every_edge(edge: int, s: int) -> None:
    for r in (edge - 1, edge, edge + 1):
        for acc in ((r - 1) << (s - 1), ((r - 1) << (s - 1)) + (1 << (s - 1)) - 1):
            for bias in (-128, -1, 0, 1, 127):
                stored = stored_bias(np.array([bias], np.int32), np.array([3]), 1)
                found = requantise(np.full((1, 1, 1, 1), acc, np.int32), np.array([s]), stored, False)
                assert int(found[0, 0, 0, 0]) == pipecnn(acc, s, bias, 2, False)


def test_sums_with_the_bias_wrap() -> None:
    found = requantise(np.full((1, 1, 1, 1), 127 * 16, np.int32), np.array([4]), np.array([1], np.int32), False)
    assert int(found[0, 0, 0, 0]) == -128
