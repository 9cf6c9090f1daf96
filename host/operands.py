"""Records what the array's operand registers see while a layer of a network runs: streams for the timing oracle."""

from __future__ import annotations

import numpy as np

from host.program.arrangement import arrange, arrange_features, arrange_weights, gather
from host.program.integer import Int8, run_layer
from host.program.layers import INPUT
from host.program.program import Program, ProgramError
from hw.config import Config
from sim.timing.streams import Stream

IMAGES = 128
"""Of each stream."""


def record(program: Program, images: Int8, name: str, *, group: int = 0, steps: int | None = None) -> Stream:
    """The steps of one output group of a layer, fault-free: image by image, row by row, column by column.

    Parameters
    ----------
    program : Program
    images : int8 array, shape (N, *program.input_shape)
        As `program.quantise_input` gives them.
    name : str
        Of the layer.
    group : int
        Which LANES output channels.
    steps : int, optional
        At most this many, whole outputs.

    Raises
    ------
    ProgramError
        If there is no such layer or group, or the arithmetic has no bias in the accumulator.
    """
    layer = program.layer(name)
    config = program.config
    if config.arithmetic != "redline":
        raise ProgramError("operand streams are recorded in redline's arithmetic: the accumulator starts at the bias")
    tensors = {INPUT: program.fold_input(images)}
    for before in program.layers[: program.index(name)]:
        tensors[before.name] = run_layer(
            gather(tensors, before), program.weights[before.name], program.biases[before.name], before
        ).out
    how = arrange(layer, config)
    if not 0 <= group < len(how.first):
        raise ProgramError(f"layer {name!r} has output groups 0 to {len(how.first) - 1}, not {group}")
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    _, rows, columns = layer.conv_shape
    planes = arrange_features(gather(tensors, layer), layer, config)
    planes = np.pad(planes, ((0, 0), (0, 0), (py, kh + sy), (px, kw + sx), (0, 0)))
    planes = planes[:, how.first[group] : how.first[group] + how.span]
    lanes = slice(group * config.lanes, (group + 1) * config.lanes)
    weights = arrange_weights(program.weights[name], layer, config)[lanes]
    per_output = weights.reshape(config.lanes, -1, config.vec).transpose(1, 0, 2)
    bias = np.zeros(config.lanes, np.int32)
    channels = program.biases[name][lanes]
    bias[: len(channels)] = channels

    length = len(per_output)
    outputs = len(images) * rows * columns
    if steps is not None:
        outputs = min(outputs, max(1, steps // length))
    features = np.empty((outputs, length, config.vec), np.int8)
    for at in range(outputs):
        image, y, x = np.unravel_index(at, (len(images), rows, columns))
        window = planes[image, :, y * sy : y * sy + kh, x * sx : x * sx + kw]
        features[at] = window.reshape(length, config.vec)
    return Stream(
        f"{name}, output group {group}, {outputs} outputs",
        features.reshape(-1, config.vec),
        np.tile(per_output, (outputs, 1, 1)),
        np.tile(np.arange(length) == 0, outputs),
        np.tile(bias, (outputs * length, 1)),
    )


LENET_JOBS = (("conv2", 0), ("fc1", 2), ("conv1", 0), ("fc2", 1), ("fc1", 5), ("fc2", 3))
"""Layers of LeNet-5 and output groups that `lenet_streams` records, each with images of its own."""


def lenet_streams(lanes: int, vec: int, steps: int, data_dir: str | None = None) -> list[Stream]:
    """Streams of the pretrained LeNet-5 on Fashion-MNIST's test images, `LENET_JOBS`."""
    from host import models
    from host.compiler.compile import compile as compile_network
    from host.datasets import data

    config = Config(lanes=lanes, vec=vec, port_bits=max(32, 8 * vec))
    calibrate = data.load("fashion-mnist", "train", data_dir).head(512).pixels
    program = compile_network(models.lenet5(pretrained=True), config, calibrate=calibrate)
    pixels = data.load("fashion-mnist", "test", data_dir).head(IMAGES * len(LENET_JOBS)).pixels
    streams = []
    for number, (name, group) in enumerate(LENET_JOBS):
        images = program.quantise_input(pixels[IMAGES * number : IMAGES * (number + 1)])
        groups = len(arrange(program.layer(name), config).first)
        streams.append(record(program, images, name, group=group % groups, steps=steps))
    return streams
