"""The hardware benchmark: exact outputs, and an array that is busy where its channels are full."""

from __future__ import annotations

import json

import pytest

from host.bench import hardware


@pytest.mark.slow
@pytest.mark.parametrize("array", list(hardware.ARRAYS))
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


@pytest.mark.slow
@pytest.mark.parametrize("array", list(hardware.ARRAYS))
def test_alexnet_is_near_the_roofline_on_a_slow_memory(array: str) -> None:
    for result in hardware.measure(array, bytes_per_cycle=8):
        assert result.exact, result
        assert 1 <= result.roofline_ratio <= 1.10, result
        assert result.modelled == pytest.approx(result.cycles, rel=0.02), result


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


def test_rooflines_name_the_longer_side_and_a_slow_memory_binds_fully_connected_layers() -> None:
    for result in hardware.model("vgg16", "32x16", bytes_per_cycle=8):
        # The first convolution has three channels to read and 64 to write.
        slow = result.kind == "fc" or result.layer == "conv1_1"
        assert result.bound == ("memory" if slow else "compute"), result
        assert 1 <= result.roofline_ratio <= 1.10, result


def test_chaining_on_chip_moves_fewer_bytes_than_writing_back() -> None:
    bytes_of = {(entry["network"], entry["mode"]): entry for entry in hardware.chaining()}
    for network in ("lenet5", "alexnet"):
        chained, back = bytes_of[network, "chained"], bytes_of[network, "write-back"]
        assert chained["bytes_written"] < back["bytes_written"]
        assert chained["bytes_read"] <= back["bytes_read"]
