"""Arrangement: weights lie where the array's steps read them, and come back unchanged."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize(
    ("m", "c", "groups", "array", "span", "first", "period"),
    [
        # Ungrouped: all planes, for all output groups.
        (8, 9, 1, (4, 4), 3, (0, 0), (1, 0)),
        # Depthwise, as many lanes as a word has channels: each output group reads its own plane.
        (16, 16, 16, (4, 4), 1, (0, 1, 2, 3), (1, 1)),
        # Two output groups a plane; the last holds no channel, and the rule speaks of it, too.
        (6, 6, 6, (2, 4), 1, (0, 0, 1, 1), (2, 1)),
        # Two groups: the second's planes are met by the second output group.
        (8, 8, 2, (4, 4), 1, (0, 1), (1, 1)),
        # Two planes an output group.
        (16, 16, 16, (8, 4), 2, (0, 2), (1, 2)),
        # Three groups of six channels: planes 0 and 1, 1 and 2, 3 and 4. No P and S give 0, 1, 3.
        (12, 18, 3, (4, 4), 2, (0, 1, 3), None),
        # Five outputs each: planes 0-1, 0-2, 1-4 and 3-4; windows of four at 0 and 1.
        (15, 18, 3, (4, 4), 4, (0, 0, 1, 1), (2, 1)),
    ],
)
def test_windows_begin_where_the_rule_says(
    m: int, c: int, groups: int, array: tuple, span: int, first: tuple, period: tuple | None
) -> None:
    lanes, vec = array
    how = arrangement.arrange(layer(m, c, 1, 1, groups), Config(lanes=lanes, vec=vec, port_bits=max(32, 8 * vec)))
    assert (how.span, how.first, how.period) == (span, first, period)


def test_a_window_without_a_rule_ends_with_the_last_plane() -> None:
    # `_windows` takes what each output group needs: no P and S, and the last needs only the last of five planes.
    assert arrangement._windows([(0, 1), (1, 2), (4, 4)], 2, 5) == (0, 1, 3)
    assert arrangement._windows([(0, 1), None, (3, 4)], 2, 5) == (0, 0, 3)


def test_planes_lie_by_source_or_as_output_groups_need_them() -> None:
    def order(made: Layer) -> list[tuple[int, int]]:
        return [(p.source, p.group) for p in arrangement.arrange(made, Config(lanes=4, vec=4)).planes]

    def reads(groups: int, channels: tuple[int, ...] | None) -> Layer:
        """Two tensors of eight channels, one after the other or chosen."""
        fixed = ((1, 1), (1, 1), (0, 0), False, None, 0, (0,) * 8, 0)
        return Layer(
            "l", ("a", "b"), (16, 1, 1), 8, *fixed, groups=groups, channels=channels, source_channels=(8, 8)
        )  # fmt: skip

    operands = tuple(channel for pair in zip(range(8), range(8, 16), strict=True) for channel in pair)
    assert order(reads(1, None)) == order(reads(1, operands)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert order(reads(8, operands)) == [(0, 0), (1, 0), (0, 1), (1, 1)]  # an addition's


def test_channels_are_gathered_in_the_order_in_which_they_are_chosen() -> None:
    a, b = np.arange(4, dtype=np.int8).reshape(1, 2, 1, 2), np.arange(10, 14, dtype=np.int8).reshape(1, 2, 1, 2)
    fixed = ((1, 1), (1, 1), (0, 0), False, None, 0, (0,), 0)
    whole = Layer("l", ("a", "b"), (4, 1, 2), 1, *fixed, source_channels=(2, 2))
    assert arrangement.gather({"a": a, "b": b}, whole).tolist() == [[[[0, 1]], [[2, 3]], [[10, 11]], [[12, 13]]]]
    chosen = Layer("l", ("b", "a"), (3, 1, 2), 1, *fixed, source_channels=(2, 2), channels=(3, 0, 2))
    assert arrangement.gather({"a": a, "b": b}, chosen).tolist() == [[[[2, 3]], [[10, 11]], [[0, 1]]]]
    assert arrangement.gather({"a": a}, Layer("l", ("a",), (2, 1, 2), 1, *fixed)) is a
