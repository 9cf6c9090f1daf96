"""AlexNet and VGG-16 at full size are scheduled for small and large arrays with 64 KiB feature buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from host.compiler.compile import _folded_if_it_fits
from host.compiler.compile import compile as compile_network
from host.models import MODELS
from host.program.arrangement import arrange
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from host.schedule.tiling import effort
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
    """Every final output of every layer and image is computed once, from loads that fit the buffers."""
    for unit in launch.units:
        records = unit.descriptors
        loads = records[(records["flags"] & Flag.LOAD) != 0]
        ends = loads["load_base"].astype(np.int64) + loads["load_words"].astype(np.int64) * loads["load_segments"]
        assert ends.max() <= config.feature_words
        assert records["pool_w"][(records["flags"] & Flag.POOL) != 0].max(initial=0) <= config.pool_columns
    for at in launch.positions:
        _, rows, columns = launch.program.layers[at].out_shape
        groups = len(arrange(launch.program.layers[at], config).first)
        kept = np.zeros((launch.batch, groups, rows, columns), np.int64)
        for unit in launch.units:
            for job, flags in zip(unit.jobs, unit.descriptors["flags"], strict=True):
                # Of jobs whose outputs join, the first.
                if job.layer == at and job.groups and not flags & (Flag.PARTIAL | Flag.RESUME):
                    y, x, *_ = job.tile
                    here = (
                        slice(job.first, job.first + job.images),
                        slice(job.first_group, job.first_group + job.groups),
                    )
                    kept[(*here, slice(y.kept_first, y.out_end), slice(x.kept_first, x.out_end))] += 1
        assert (kept == 1).all()


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
        bands = {rows for rows, _ in launch.tiles(at)}
        assert sum(band.conv_size for band in bands) <= 1.5 * layer.conv_shape[1]


@pytest.mark.parametrize("array", [(2, 4), (16, 8)], ids=lambda a: f"{a[0]}x{a[1]}")
@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
def test_full_size_networks_fit_small_buffers(network: str, array: tuple[int, int]) -> None:
    lanes, vec = array
    config = Config(
        lanes=lanes, vec=vec, port_bits=min(128, 8 * lanes * vec), feature_bytes=1 << 14, weight_bytes=1 << 14
    )
    made = program(network, config)
    check(schedule(made, range(len(made.layers)), 1, writeback=False), config)
    efforts = [effort(layer, config) for layer in made.layers]
    assert 2 in efforts
    # VGG-16's first fully connected layer reads 25,088 bytes.
    assert (3 in efforts) == (network == "vgg16")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", MODELS)
def test_every_network_runs_on_every_array_with_buffers_of_any_size(network: str) -> None:
    """No layer is refused; with the default buffers, no output of any layer needs jobs of its own."""
    images = torch.rand(1, 1, 28, 28) if network in ("lenet5", "caffe_lenet") else torch.rand(1, 3, 224, 224)
    plain = compile_network(MODELS[network]().eval(), Config(), calibrate=images, fold=False)
    for lanes, vec in ((2, 4), (4, 4), (16, 8), (32, 16)):
        for size in (1 << 16, 1 << 14, 1 << 12):
            port = min(128, 8 * lanes * min(vec, 8))
            weights = max(size, 16 * lanes * vec)
            config = Config(lanes=lanes, vec=vec, port_bits=port, feature_bytes=size, weight_bytes=weights)
            made = replace(plain, config=config)
            efforts = {effort(layer, config) for layer in made.layers}
            assert size < 1 << 16 or 3 not in efforts
            if size > 1 << 12:
                check(schedule(made, range(len(made.layers)), 1, writeback=False), config)


def test_weights_that_the_default_ring_cannot_hold_are_streamed() -> None:
    # 3x3 kernels over 256 channels take 216 weight words of 512 bytes, and the ring holds 128.
    made = program("alexnet", Config(lanes=32, vec=16))
    launch = schedule(made, range(len(made.layers)), 1, writeback=False)
    records = launch.units[0].descriptors
    streamed = (records["flags"] & Flag.STREAM) != 0
    assert {int(steps) for steps in records["steps"][streamed]} >= {216}
    assert (records["weight_passes"][streamed] > 1).all()
    assert (records["weight_passes"][~streamed] == 1).all()
