"""The accelerator's arithmetic against values worked out by hand: requantising, pooling, folding."""

from __future__ import annotations

import numpy as np
import pytest

from host.program import pipecnn
from host.program.fold import Fold, fold_features, fold_weights, unfold_weights
from host.program.integer import accumulate, finish, max_pool, requantise, run_layer
from host.program.layers import INPUT, Layer, Normalisation, Pool


def one(value: int) -> np.ndarray:
    return np.full((1, 1, 1, 1), value, np.int32)


@pytest.mark.parametrize(
    ("acc", "shift", "relu", "upper", "result"),
    [
        (5, 0, False, 127, 5),  # no rounding
        (5, 1, False, 127, 3),  # 2.5, towards plus infinity
        (-5, 1, False, 127, -2),
        (-5, 1, True, 127, 0),
        (7, 2, False, 127, 2),  # 1.75
        (2**31 - 1, 1, False, 127, 127),  # the rounding term does not wrap
        (-(2**31), 31, False, 127, -1),
        (-(2**31), 0, False, 127, -128),
        (100, 1, False, 48, 48),
        (-200, 0, True, 48, 0),
    ],
)
def test_sums_are_requantised(acc: int, shift: int, relu: bool, upper: int, result: int) -> None:
    assert requantise(one(acc), np.array([shift]), relu, upper).item() == result


@pytest.mark.parametrize(
    ("acc", "bias", "relu", "upper", "result"),
    [
        (100, 10, False, 127, 60),  # 50 + 10
        (100, 90, False, 127, -116),  # 140 wraps
        (100, 90, True, 127, 0),  # and then ReLU
        (300, 90, False, 127, 127),  # 150 saturates, and takes no bias
        (300, 90, False, 48, 48),
        (100, 10, True, 48, 48),
        (100, 90, False, 48, -116),
    ],
)
def test_pipecnns_sums_wrap_and_keep_below_their_bound(
    acc: int, bias: int, relu: bool, upper: int, result: int
) -> None:
    added = np.array([bias], np.int32)
    assert pipecnn.requantise(one(acc), np.array([1]), added, relu, upper).item() == result
    layer = Layer("l", (INPUT,), (1, 1, 1), 1, (1, 1), (1, 1), (0, 0), relu, None, 1, (0,), 0, upper=upper)
    assert finish(one(acc), layer, added=added).conv.item() == result
    assert finish(one(acc), layer, np.array([1]), added).conv.item() == result


def test_pooling_takes_no_padding_for_a_value() -> None:
    x = np.array([[-5, -3, -9], [-7, -8, -2], [-6, -4, -1]], np.int8)[None, None]
    assert max_pool(x, Pool(2, 2, 1)).tolist() == [[[[-5, -3], [-6, -1]]]]
    assert max_pool(x, Pool(3, 1, 0)).tolist() == [[[[-1]]]]
    assert max_pool(x, Pool(2, 1, 0)).tolist() == [[[[-3, -2], [-4, -1]]]]


def test_normalisation_is_run_as_a_layer() -> None:
    # 2 / (1 + 2**2), 0, 4 / (1 + 4**2) at three fractional bits: 3.2, 0, 1.88.
    how = Normalisation(size=3, alpha=3.0, beta=1.0, k=1.0)
    fixed = ((3, 1, 1), 3, (1, 1), (1, 1), (0, 0), False, None, 0, (24,) * 3, 3)
    layer = Layer("l", (INPUT,), *fixed, placement="cpu", operator="lrn", normalisation=how)
    nothing = np.zeros((3, 1, 1, 1), np.int8), np.zeros(3, np.int32)
    outputs = run_layer(np.array([2, 0, 4], np.int8).reshape(1, 3, 1, 1), *nothing, layer)
    assert outputs.conv.reshape(-1).tolist() == outputs.out.reshape(-1).tolist() == [3, 0, 2]


def test_sums_wrap_at_32_bits() -> None:
    x, w = np.full((1, 2, 1, 1), -128, np.int8), np.full((1, 2, 1, 1), -128, np.int8)
    assert accumulate(x, w, np.array([2**31 - 1], np.int32), (1, 1), (0, 0), 1).item() == -(2**31) + 2**15 - 1


def test_columns_are_folded_into_channels() -> None:
    # One row of four pixels, a kernel of three columns, stride two, one column of padding: two windows.
    fold = Fold(channels=1, kernel_w=3, stride_x=2, pad_x=1, width=4)
    folded = fold_features(np.array([[[[1, 2, 3, 4]]]], np.int8), fold)
    assert folded.tolist() == [[[[0, 2]], [[1, 3]], [[2, 4]]]]
    weight = np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3)
    assert fold_weights(weight).shape == (2, 6, 3, 1)
    assert fold_weights(weight)[1, 2 * 2 + 1, 0, 0] == weight[1, 1, 0, 2]  # channel kx * C + c
    assert np.array_equal(unfold_weights(fold_weights(weight), Fold(2, 3, 3, 1, 0)), weight)
