"""Graphs of layers: what an independent interpreter makes of the descriptors is what the layers say, with faults."""

from __future__ import annotations

import numpy as np
import pytest

from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.models import SoftErrors
from host.program.integer import run_layer
from host.program.layers import INPUT
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from hw.config import Config
from tests.host.executor import Executor
from tests.host.schedule.graphs import GRAPHS

ARRAYS = [(2, 4), (4, 4), (8, 8), (16, 8), (4, 8), (8, 16), (2, 16), (4, 16)]


def build(lanes: int, vec: int, features: int, weights: int = 32) -> Config:
    """An array with buffers of so many words."""
    return Config(
        lanes=lanes, vec=vec, feature_bytes=features * vec, weight_bytes=max(256, weights * lanes * vec),
        port_bits=8 * max(4, min(vec, lanes * min(vec, 8))), pool_columns=32, saboteur=True,
    )  # fmt: skip


def same(found: Outputs, wanted: Outputs) -> None:
    """All tensors that were found are those wanted, the last among them."""
    assert list(wanted.out)[-1] in found.out
    for kind in ("out", "conv"):
        for name, tensor in getattr(found, kind).items():
            assert np.array_equal(tensor, getattr(wanted, kind)[name]), (kind, name)


def images(program: Program, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (count, *program.input_shape)).astype(np.int8)


def launches(program: Program, batch: int = 2) -> list[Launch]:
    return [
        schedule(program, positions, batch, writeback=False)
        for placement, positions in program.segments()
        if placement == "accelerator"
    ]


def records(program: Program) -> np.ndarray:
    return np.concatenate([launch.units[0].descriptors for launch in launches(program)])


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a[0]}x{a[1]}")
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("features", [128, 512, 4096])
def test_graphs_give_the_references_bytes_with_and_without_faults(
    name: str, array: tuple[int, int], features: int
) -> None:
    for seed in range(3):
        graph = GRAPHS[name](seed)
        config = build(*array, features, (16, 32, 512)[seed])
        try:
            program = graph.program(config)
        except CompileError as error:
            if features > 128 or "a feature buffer holds" not in error.reason:
                raise
            continue
        x = images(program, 3, seed)
        plan = SoftErrors(3e-4, per="mac").draw(program, 4, 3, seed)
        plan += SoftErrors(3e-4, sites=("feature", "weight", "input")).draw(program, 4, 3, seed)
        for writeback, faults, units in ((False, None, 1), (True, plan, 2), (False, plan, 1)):
            wanted = Runtime(program, ReferenceDevice(program.config)).forward(x, plan=faults, first_image=4)
            device = Executor(program.config, units=units)
            found = Runtime(program, device).forward(x, writeback=writeback, plan=faults, first_image=4)
            same(found, wanted)
            if writeback:
                assert list(found.out) == list(program.names)
        plain = {INPUT: x}
        for layer in program.layers:
            stacked = np.concatenate([plain[source] for source in layer.sources], axis=1)
            taken = stacked if layer.channels is None else stacked[:, list(layer.channels)]
            plain[layer.name] = run_layer(taken, program.weights[layer.name], program.biases[layer.name], layer).out
        assert np.array_equal(
            Runtime(program, ReferenceDevice(program.config)).forward(x).out[program.names[-1]],
            plain[program.names[-1]],
        )
