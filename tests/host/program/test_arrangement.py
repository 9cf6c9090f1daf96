"""Arrangement: weights lie where the array's steps read them, and come back unchanged."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from host.program import arrangement
from host.program.layers import INPUT, Layer
from hw.config import Config

powers = st.sampled_from([(2, 4), (4, 4), (4, 8), (16, 8), (8, 16)])


def layer(m: int, c: int, kh: int, kw: int, groups: int = 1) -> Layer:
    """A convolution whose only output is that of one window."""
    return Layer("l", (INPUT,), (c, kh, kw), m, (kh, kw), (1, 1), (0, 0), False, None, 0, (0,) * m, 0, groups=groups)


def weights(made: Layer, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, made.weight_shape).astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), powers, st.integers(0, 99))
def test_plain_weights_lie_as_the_layout_says(m: int, c: int, kh: int, kw: int, array: tuple, seed: int) -> None:
    """`[M/LANES][C/VEC][KH][KW][LANES][VEC]`, channels padded with zeros at the end: computed element by element."""
    lanes, vec = array
    config, made = Config(lanes=lanes, vec=vec, port_bits=max(32, 8 * vec)), layer(m, c, kh, kw)
    w = weights(made, seed)
    packed = arrangement.pack_weights(w, made, config)
    groups = -(-m // max(lanes, vec)) * max(lanes, vec) // lanes
    assert packed.shape == arrangement.weights_shape(made, config) == (groups, -(-c // vec), kh, kw, lanes, vec)
    for channel, source, y, x in np.random.default_rng(seed).integers(0, (m, c, kh, kw), (20, 4)):
        there = packed[channel // lanes, source // vec, y, x, channel % lanes, source % vec]
        assert there == w[channel, source, y, x]
    assert np.count_nonzero(packed) == np.count_nonzero(w)
    assert np.array_equal(arrangement.unpack_weights(packed, made, config), w)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 9), powers, st.integers(0, 99))
def test_grouped_weights_survive_the_round_trip(groups: int, inner: int, outer: int, array: tuple, seed: int) -> None:
    lanes, vec = array
    config = Config(lanes=lanes, vec=vec, port_bits=max(32, 8 * vec))
    made = layer(groups * outer, groups * inner, 3, 2, groups)
    w = weights(made, seed)
    packed = arrangement.pack_weights(w, made, config)
    assert packed.shape == arrangement.weights_shape(made, config)
    assert np.count_nonzero(packed) == np.count_nonzero(w)
    assert np.array_equal(arrangement.unpack_weights(packed, made, config), w)
