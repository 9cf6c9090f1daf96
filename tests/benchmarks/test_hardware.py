"""The hardware benchmark: exact outputs, and an array that is busy where its channels are full."""

from __future__ import annotations

import json

import pytest

from benchmarks import hardware


@pytest.mark.slow
@pytest.mark.parametrize("array", hardware.ON_RTL)
def test_alexnet_is_exact_and_keeps_the_array_busy(array: str) -> None:
    results = hardware.measure(array)
    assert [result.layer for result in results] == [row[0] for row in hardware.ALEXNET]
    for result in results:
        assert result.exact, result
        limit = 1.05 if result.kind == "conv" and result.fills_array else 1.15
        assert result.ratio <= (1.10 if result.kind == "fc" else limit), result
        assert result.modelled == pytest.approx(result.cycles, rel=0.02), result
    assert results[0].cycles <= 0.55 * results[0].ideal_unfolded
    totals = json.loads(json.dumps(hardware.as_dict(results)))["totals"]
    assert [total["kind"] for total in totals] == ["conv", "fc"]
    assert all(total["ratio"] < 1.10 for total in totals)


def test_one_layer_is_measured_on_the_rtl() -> None:
    (result,) = hardware.measure("16x8", names=("fc8",))
    assert result.exact
    assert result.cycles >= result.ideal


@pytest.mark.parametrize("array", list(hardware.ARRAYS))
def test_vgg16_is_modelled_to_keep_the_array_busy(array: str) -> None:
    results = hardware.model("vgg16", array)
    assert [result.layer for result in results] == [row[0] for row in hardware.VGG16]
    for result in results:
        if result.fills_array or result.kind == "fc":
            assert result.ratio <= (1.10 if result.kind == "fc" else 1.05), result
