"""Layouts: reordering and recovering are inverses, and place every element where the accelerator reads it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import layout, params

sizes = st.integers(1, 12)
powers = st.sampled_from([2, 4, 8, 16])


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 40), sizes, sizes, powers, st.integers(0, 2**31))
def test_features_survive_the_round_trip(n: int, c: int, h: int, w: int, vec: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-128, 128, (n, c, h, w)).astype(np.int8)
    there = layout.reorder_features(x, vec)
    assert there.shape == (n, -(-c // vec), h, w, vec)
    assert there[0].nbytes == layout.features_bytes(c, h, w, vec)
    assert np.array_equal(layout.recover_features(there, c), x)
    assert np.count_nonzero(there) == np.count_nonzero(x)  # padding is zero
    image, channel, y, column = n - 1, c - 1, h // 2, w // 2
    assert there[image, channel // vec, y, column, channel % vec] == x[image, channel, y, column]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), powers, powers, st.integers(0, 99))
def test_parameters_are_packed_a_record_a_channel(m: int, lanes: int, vec: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias, shift = rng.integers(-(2**31), 2**31, m).astype(np.int32), rng.integers(0, 32, m)
    records = layout.pack_params(bias, shift, lanes, vec)
    assert records.shape == (layout.output_groups(m, lanes, vec), lanes)
    assert records.dtype.itemsize == params.PARAM_BYTES
    flat = records.reshape(-1)
    assert np.array_equal(flat["bias"][:m], bias)
    assert np.array_equal(flat["shift"][:m], shift)
    assert not flat["bias"][m:].any()


@pytest.mark.parametrize("shift", [-1, 32])
def test_shifts_that_do_not_fit_their_field_are_refused(shift: int) -> None:
    with pytest.raises(ValueError, match="shift must be 0 to 31"):
        layout.pack_params(np.zeros(2, np.int32), np.array([0, shift]), 4, 4)
