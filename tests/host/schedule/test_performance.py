"""Predictions without simulating: sums that add up, bounds that follow from the numbers, rooflines by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from host.compiler.compile import compile as compile_network
from host.models import lenet5
from host.program.program import Program
from host.schedule import roofline
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import schedule
from host.schedule.performance import predict
from host.schedule.traffic import Traffic, moved_bytes
from hw.config import Config

CONFIG = Config(port_bits=512)


def lenet(config: Config = CONFIG) -> Program:
    return compile_network(lenet5(), config, calibrate=torch.rand(4, 1, 28, 28))


@pytest.mark.parametrize("writeback", [False, True])
def test_layers_add_up_to_the_launch(writeback: bool) -> None:
    program, memory = lenet(), Memory(100, 8.0)
    found = predict(program, memory, batch=4, writeback=writeback)
    launch = schedule(program, range(5), 4, writeback=writeback)
    assert found.cycles == pytest.approx(estimate(launch, memory).cycles)
    assert found.traffic == moved_bytes(launch)
    assert found.macs == 4 * 416_520
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert found.images_per_second(200) == pytest.approx(200e6 * 4 / found.cycles)
    assert found.gmacs_per_second(200) == pytest.approx(found.images_per_second(200) * 416_520 / 1e9)


def test_layers_on_the_cpu_are_named_and_cut_the_launch() -> None:
    program = lenet()
    found = predict(program.with_placement(cpu=["conv2"]), Memory(100, 64.0))
    assert found.on_cpu == ("conv2",)
    assert [layer.name for layer in found.layers] == ["conv1", "fc1", "fc2", "fc3"]
    assert found.macs == 416_520 - 240_000
    # Its neighbours go through memory.
    places = {layer.name: str(layer.buffers) for layer in found.layers}
    assert places == {"conv1": "mem>A>mem", "fc1": "mem>A>B", "fc2": "B>A", "fc3": "A>mem"}


def test_write_back_moves_more_bytes_and_is_never_faster() -> None:
    for rate in (2.0, 64.0):
        chained = predict(lenet(), Memory(100, rate), batch=4)
        written = predict(lenet(), Memory(100, rate), batch=4, writeback=True)
        assert written.traffic.written > 10 * chained.traffic.written
        assert written.cycles >= chained.cycles


def test_a_faster_memory_turns_fully_connected_layers_from_memory_to_compute_bound() -> None:
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 64))
    config = Config(port_bits=512, weight_bytes=1 << 20, feature_bytes=1 << 19)
    program = compile_network(net, config, calibrate=torch.rand(2, 64, 16, 16))
    bounds = {}
    for rate, batch in ((4.0, 1), (64.0, 1), (64.0, 16)):
        found = predict(program, Memory(100, rate), batch=batch)
        bounds[rate, batch] = [layer.bound for layer in found.layers]
    assert bounds == {
        (4.0, 1): ["compute", "memory"],
        (64.0, 1): ["compute", "memory"],
        (64.0, 16): ["compute", "compute"],
    }


def test_a_tiny_layer_waits_for_its_memory() -> None:
    program = compile_network(nn.Sequential(nn.Conv2d(8, 16, 1)), CONFIG, calibrate=torch.rand(1, 8, 2, 2))
    (layer,) = predict(program, Memory(100, 64.0)).layers
    assert layer.bound == "latency"
    assert layer.steps == 4


@given(
    st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 10**7), st.sampled_from([1.0, 8.0, 64.0]),
    st.floats(1.0, 3.0),
)  # fmt: skip
def test_bounds_are_the_longer_side_unless_neither_accounts_for_half(
    steps: int, read: int, written: int, rate: float, slack: float
) -> None:
    moving = -(-max(read, written) // int(rate))
    fewest = roofline.fewest(steps, Traffic(read, written), rate)
    assert fewest == max(steps, moving)
    found = roofline.bound(slack * fewest, steps, Traffic(read, written), rate)
    wanted = "compute" if steps >= moving else "memory"
    assert found == ("latency" if slack * fewest > 2 * fewest else wanted)


def test_the_roof_rises_with_intensity_to_the_arrays_multipliers() -> None:
    config = replace(CONFIG, lanes=16, vec=8)
    assert roofline.attainable(0.5, config, 64) == 32
    assert roofline.attainable(2, config, 64) == roofline.attainable(1000, config, 64) == 128
    assert roofline.bandwidth(Memory(100, 8.0), config) == 8
    assert roofline.bandwidth(Memory(), config) == roofline.bandwidth(Memory(9, 1000.0), config) == 64
