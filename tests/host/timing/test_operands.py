"""Operand streams of layers: the array's steps in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from host.compiler.compile import compile as compile_network
from host.operands import record
from host.program.arrangement import gather
from host.program.integer import accumulate, run_layer
from host.program.program import ProgramError
from hw.config import Config

CONFIG = Config(lanes=4, vec=4, port_bits=32)


@pytest.fixture(scope="module")
def program_and_images():
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 10, (3, 2), padding=(1, 0)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * 5 * 4, 7),
    )
    x = torch.randn(3, 3, 10, 10)
    program = compile_network(net, CONFIG, calibrate=x)
    return program, program.quantise_input(x)


@pytest.mark.parametrize(("layer", "group"), [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)])
def test_products_of_a_stream_add_up_to_the_layers_accumulators(program_and_images, layer: int, group: int) -> None:
    program, images = program_and_images
    what = program.layers[layer]
    stream = record(program, images, what.name, group=group)
    totals = (stream.features.astype(np.int64)[:, None] * stream.weights).sum(axis=2)
    outputs = np.add.reduceat(totals, np.flatnonzero(stream.first), axis=0) + stream.bias[stream.first]

    tensors = {"input": program.fold_input(images)}
    for before in program.layers[:layer]:
        x = gather(tensors, before)
        tensors[before.name] = run_layer(x, program.weights[before.name], program.biases[before.name], before).out
    x = gather(tensors, what)
    acc = accumulate(x, program.weights[what.name], program.biases[what.name], what.stride, what.padding, what.groups)
    channels = acc[:, group * 4 : group * 4 + 4]
    expected = channels.transpose(0, 2, 3, 1).reshape(len(outputs), -1)
    assert np.array_equal(outputs[:, : expected.shape[1]], expected)
    assert not outputs[:, expected.shape[1] :].any()


def test_a_stream_ends_with_a_whole_output(program_and_images) -> None:
    program, images = program_and_images
    name = program.layers[1].name
    whole = record(program, images, name)
    per_output = int(np.flatnonzero(whole.first)[1])
    short = record(program, images, name, steps=3 * per_output + 1)
    assert len(short) == 3 * per_output
    assert np.array_equal(short.features, whole.features[: len(short)])


def test_a_layer_or_group_that_is_not_there_is_refused(program_and_images) -> None:
    program, images = program_and_images
    with pytest.raises(ProgramError, match="no layer 'conv9'"):
        record(program, images, "conv9")
    with pytest.raises(ProgramError, match="has output groups 0 to 1, not 2"):
        record(program, images, program.layers[0].name, group=2)
