"""AlexNet and VGG-16 at full size are scheduled for small and large arrays with 64 KiB feature buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from host.compiler.compile import _folded_if_it_fits
from host.compiler.limits import CompileError
from host.models import MODELS
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from hw.config import Config
from hw.descriptor import Flag

ARRAYS = {
    "4x4": Config(lanes=4, vec=4, pool_columns=112),
    # 3x3 kernels over 512 channels take 576 weight words of 128 bytes, or 288 of 512.
    "16x8": Config(weight_bytes=1 << 17, pool_columns=112),
    "32x16": Config(lanes=32, vec=16, weight_bytes=1 << 18, pool_columns=112),
}


def program(network: str, config: Config) -> Program:
    """A network's chain of layers with weights of zero: a schedule depends on shapes only."""
    with torch.device("meta"):
        net = MODELS[network]()
    layers: list[Layer] = []
    shape: tuple[int, int, int] = (3, 224, 224)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            layers[-1] = replace(layers[-1], relu=True)
        elif isinstance(module, nn.MaxPool2d):
            layers[-1] = replace(layers[-1], pool=Pool(int(module.kernel_size), int(module.stride)))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            shape = layers[-1].out_shape if layers else shape
            linear = isinstance(module, nn.Linear)
            made = Layer(
                name=f"layer{len(layers)}",
                sources=(layers[-1].name if layers else INPUT,),
                in_shape=shape,
                out_channels=len(module.weight),
                kernel=shape[1:] if linear else module.kernel_size,  # type: ignore[arg-type]
                stride=(1, 1) if linear else module.stride,  # type: ignore[arg-type]
                padding=(0, 0) if linear else module.padding,  # type: ignore[arg-type]
                relu=False,
                pool=None,
                in_frac=0,
                weight_frac=(8,) * len(module.weight),
                out_frac=0,
            )
            layers.append(made if layers else _folded_if_it_fits(made, config))
    weights = {layer.name: np.zeros(layer.weight_shape, np.int8) for layer in layers}
    biases = {layer.name: np.zeros(layer.out_channels, np.int32) for layer in layers}
    return Program(config, tuple(layers), weights, biases, (3, 224, 224), 0)


def check(launch: Launch, config: Config) -> None:
    """Every final row of every layer and image is computed, from loads that fit the buffers."""
    for unit in launch.units:
        loads = unit.descriptors[(unit.descriptors["flags"] & Flag.LOAD) != 0]
        ends = loads["load_base"].astype(np.int64) + loads["load_words"].astype(np.int64) * loads["load_segments"]
        assert ends.max() <= config.feature_words
    for at in launch.positions:
        jobs = [job for unit in launch.units for job in unit.jobs if job.layer == at]
        rows = launch.program.layers[at].out_shape[1]
        kept = [
            (image, row)
            for job in jobs
            for image in range(job.first, job.first + job.images)
            for row in range(job.band.kept_first, job.band.out_end)
        ]
        assert sorted(kept) == [(image, row) for image in range(launch.batch) for row in range(rows)]


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
def test_full_size_networks_are_scheduled_in_bands(network: str, array: str, writeback: bool) -> None:
    config = ARRAYS[array]
    made = program(network, config)
    launch = schedule(made, range(len(made.layers)), 2, writeback=writeback)
    check(launch, config)
    jobs = [job.layer for job in launch.units[0].jobs]
    assert jobs.count(0) > 2
    # Bands overlap by their halo and by shared pooling rows, not by much more.
    for at, layer in enumerate(made.layers):
        bands = {job.band for job in launch.units[0].jobs if job.layer == at}
        assert sum(band.conv_rows for band in bands) <= 1.5 * layer.conv_shape[1]


def test_what_the_default_buffers_cannot_hold_is_refused_with_its_remedy_or_streamed() -> None:
    with pytest.raises(CompileError, match="112 pixels wide, the line buffer holds 64; build with pool_columns=112"):
        program("vgg16", Config())
    # 3x3 kernels over 256 channels take 216 weight words of 512 bytes, and the ring holds 128.
    made = program("alexnet", Config(lanes=32, vec=16))
    launch = schedule(made, range(len(made.layers)), 1, writeback=False)
    records = launch.units[0].descriptors
    streamed = (records["flags"] & Flag.STREAM) != 0
    assert {int(steps) for steps in records["steps"][streamed]} >= {216}
    assert (records["weight_passes"][streamed] > 1).all()
    assert (records["weight_passes"][~streamed] == 1).all()
