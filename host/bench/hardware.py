"""Cycles of AlexNet's (on the RTL) and VGG-16's layers (modelled), beside the fewest an array could take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.program.arrangement import steps, weights_shape
from host.program.fold import folded
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import Launch, schedule
from host.schedule.memory import tensor_shape
from hw import descriptor, params
from hw.config import Config
from hw.descriptor import Flag
from hw.layout import ceil_div

FC_BATCH = 16
LATENCY = 100
"""Cycles from a read request to its first beat."""
OVERLAP_3 = Pool(3, 2)
HALVES = Pool(2, 2)
# name, input (C, H, W), output channels, kernel, stride, padding, pooling: as torchvision has them.
Row = tuple[str, tuple[int, int, int], int, int, int, int, Pool | None]
ALEXNET: tuple[Row, ...] = (
    ("conv1", (3, 224, 224), 64, 11, 4, 2, OVERLAP_3),
    ("conv2", (64, 27, 27), 192, 5, 1, 2, OVERLAP_3),
    ("conv3", (192, 13, 13), 384, 3, 1, 1, None),
    ("conv4", (384, 13, 13), 256, 3, 1, 1, None),
    ("conv5", (256, 13, 13), 256, 3, 1, 1, OVERLAP_3),
    ("fc6", (256, 6, 6), 4096, 6, 1, 0, None),
    ("fc7", (4096, 1, 1), 4096, 1, 1, 0, None),
    ("fc8", (4096, 1, 1), 1000, 1, 1, 0, None),
)
VGG16: tuple[Row, ...] = (
    ("conv1_1", (3, 224, 224), 64, 3, 1, 1, None),
    ("conv1_2", (64, 224, 224), 64, 3, 1, 1, HALVES),
    ("conv2_1", (64, 112, 112), 128, 3, 1, 1, None),
    ("conv2_2", (128, 112, 112), 128, 3, 1, 1, HALVES),
    ("conv3_1", (128, 56, 56), 256, 3, 1, 1, None),
    ("conv3_2", (256, 56, 56), 256, 3, 1, 1, None),
    ("conv3_3", (256, 56, 56), 256, 3, 1, 1, HALVES),
    ("conv4_1", (256, 28, 28), 512, 3, 1, 1, None),
    ("conv4_2", (512, 28, 28), 512, 3, 1, 1, None),
    ("conv4_3", (512, 28, 28), 512, 3, 1, 1, HALVES),
    ("conv5_1", (512, 14, 14), 512, 3, 1, 1, None),
    ("conv5_2", (512, 14, 14), 512, 3, 1, 1, None),
    ("conv5_3", (512, 14, 14), 512, 3, 1, 1, HALVES),
    ("fc6", (512, 7, 7), 4096, 7, 1, 0, None),
    ("fc7", (4096, 1, 1), 4096, 1, 1, 0, None),
    ("fc8", (4096, 1, 1), 1000, 1, 1, 0, None),
)
LENET5: tuple[Row, ...] = (
    ("conv1", (1, 28, 28), 6, 5, 1, 2, HALVES),
    ("conv2", (6, 14, 14), 16, 5, 1, 0, HALVES),
    ("fc1", (16, 5, 5), 120, 5, 1, 0, None),
    ("fc2", (120, 1, 1), 84, 1, 1, 0, None),
    ("fc3", (84, 1, 1), 10, 1, 1, 0, None),
)
NETWORKS = {"alexnet": ALEXNET, "vgg16": VGG16}
LAYERS = tuple(row[0] for row in ALEXNET)
ARRAYS = {
    "16x8": Config(lanes=16, vec=8, port_bits=512, feature_bytes=1 << 19, weight_bytes=1 << 20, pool_columns=128),
    "32x16": Config(lanes=32, vec=16, port_bits=512, feature_bytes=1 << 20, weight_bytes=1 << 21, pool_columns=128),
}


@dataclass(frozen=True)
class LayerCycles:
    """One layer's measurement.

    Attributes
    ----------
    network, layer, kind, array, memory : str
        `kind` is "conv" or "fc"; `memory` is bandwidth and latency.
    batch : int
    source : str
        "rtl" (counted by the accelerator's RTL) or "model" (host.schedule.cycles).
    cycles : int
        From start to done: loading, computing, pooling and writing back.
    modelled : int
        What the cycle model says.
    ideal : int
        For a convolution the array's steps, `out_h * out_w * ceil(M/LANES) * steps`, after folding; for a fully
        connected layer the larger of that (times the batch) and its weights' bytes over the memory's bandwidth.
    ideal_unfolded : int
        The same without folding the kernel's columns into channels.
    ratio : float
        `cycles / ideal`.
    bound : str
        "compute" or "memory": which of the roofline's two sides is longer.
    roofline : int
        Fewest cycles: the larger of the array's steps (times the batch) and the bytes that must be moved, each once
        (packed weights and input read, output written), over the memory's bandwidth.
    roofline_ratio : float
        `cycles / roofline`.
    fills_array : bool
        Input and output channels are multiples of VEC and LANES.
    exact : bool or None
        The outputs equal the reference device's; None where nothing was run.
    """

    network: str
    layer: str
    kind: str
    array: str
    memory: str
    batch: int
    source: str
    cycles: int
    modelled: int
    ideal: int
    ideal_unfolded: int
    ratio: float
    bound: str
    roofline: int
    roofline_ratio: float
    fills_array: bool
    exact: bool | None


def measure(
    array: str = "16x8",
    *,
    bytes_per_cycle: int = 64,
    names: tuple[str, ...] = LAYERS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[LayerCycles]:
    """Run layers of AlexNet, each in a launch of its own, on the RTL.

    Parameters
    ----------
    array : str
        A key of `ARRAYS`.
    bytes_per_cycle : int
        The memory's bandwidth, for reads and for writes.
    names : tuple of str
        Layers to run.
    progress : callable
        Told each layer's name before it runs.
    """
    config = ARRAYS[array]
    results = []
    with (
        SimulationDevice(config, processes=1, latency=LATENCY, bytes_per_cycle=bytes_per_cycle) as device,
        ReferenceDevice(config) as reference,
    ):
        for row in ALEXNET:
            if row[0] not in names:
                continue
            progress(row[0])
            modelled = _modelled("alexnet", row, array, bytes_per_cycle)
            program = _program(config, row)
            x = np.random.default_rng(1).integers(-128, 128, (modelled.batch, *row[1]), np.int8)
            outputs = Runtime(program, device).forward(x, writeback=False)
            expected = Runtime(program, reference).forward(x, writeback=False)
            cycles = outputs.report.cycles
            results.append(
                replace(
                    modelled,
                    source="rtl",
                    cycles=cycles,
                    ratio=round(cycles / modelled.ideal, 4),
                    roofline_ratio=round(cycles / modelled.roofline, 4),
                    exact=bool(np.array_equal(outputs.out[row[0]], expected.out[row[0]])),
                )
            )
    return results


def model(network: str, array: str = "16x8", *, bytes_per_cycle: int = 64) -> list[LayerCycles]:
    """The same for every layer of a network of `NETWORKS`, from the cycle model, without running anything."""
    return [_modelled(network, row, array, bytes_per_cycle) for row in NETWORKS[network]]


def _layers(config: Config, row: Row) -> tuple[Layer, Layer]:
    """The layer as the network has it, and as it is computed: folded where that saves steps."""
    name, shape, channels, kernel, stride, pad, pool = row
    plain = Layer(
        name=name,
        sources=(INPUT,),
        in_shape=shape,
        out_channels=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(pad, pad),
        relu=True,
        pool=pool,
        in_frac=7,
        weight_frac=(7,) * channels,
        out_frac=2,
    )
    return plain, folded(plain, config.vec)


def _program(config: Config, row: Row) -> Program:
    _, layer = _layers(config, row)
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 128, layer.weight_shape, np.int8)
    biases = rng.integers(-1000, 1000, layer.out_channels, np.int32)
    return Program(config, (layer,), {layer.name: weights}, {layer.name: biases}, row[1], layer.in_frac)


def _modelled(network: str, row: Row, array: str, bytes_per_cycle: int) -> LayerCycles:
    config = ARRAYS[array]
    plain, layer = _layers(config, row)
    fully_connected = row[0].startswith("fc")
    batch = FC_BATCH if fully_connected else 1
    launch = schedule(_program(config, row), (0,), batch, writeback=False, units=1, memory_bytes=1 << 30)
    cycles = round(estimate(launch, Memory(LATENCY, bytes_per_cycle)).cycles)
    ideal = computing = batch * _array_cycles(layer, config)
    moving = ceil_div(max(_least_bytes(layer, config, batch)), bytes_per_cycle)
    roofline = max(computing, moving)
    if fully_connected:
        ideal = max(ideal, ceil_div(int(np.prod(layer.weight_shape)), bytes_per_cycle))
    return LayerCycles(
        network=network,
        layer=row[0],
        kind="fc" if fully_connected else "conv",
        array=array,
        memory=f"{bytes_per_cycle} B/cycle, {LATENCY} cycles",
        batch=batch,
        source="model",
        cycles=cycles,
        modelled=cycles,
        ideal=ideal,
        ideal_unfolded=batch * _array_cycles(plain, config),
        ratio=round(cycles / ideal, 4),
        bound="compute" if computing >= moving else "memory",
        roofline=roofline,
        roofline_ratio=round(cycles / roofline, 4),
        fills_array=row[1][0] % config.vec == 0 and row[2] % config.lanes == 0,
        exact=None,
    )


def _least_bytes(layer: Layer, config: Config, batch: int) -> tuple[int, int]:
    """Bytes that have to be read (packed weights, input) and written (output), each once."""
    read = int(np.prod(weights_shape(layer, config)))
    read += int(np.prod(tensor_shape(layer.in_shape, batch, config.vec)))
    return read, int(np.prod(tensor_shape(layer.out_shape, batch, config.vec)))


def chaining(array: str = "16x8", batch: int = FC_BATCH) -> list[dict[str, Any]]:
    """Bytes of inference with layers chained on chip, and with every layer's outputs written back, by the schedule."""
    config, results = ARRAYS[array], []
    for network, rows in (("lenet5", LENET5), ("alexnet", ALEXNET)):
        program = _network(config, rows)
        for mode, writeback in (("chained", False), ("write-back", True)):
            positions = range(len(program.layers))
            launch = schedule(program, positions, batch, writeback=writeback, memory_bytes=1 << 31)
            read, written = moved_bytes(launch)
            counts = {"batch": batch, "bytes_read": read, "bytes_written": written}
            results.append({"network": network, "mode": mode, **counts, "source": "schedule"})
    return results


def moved_bytes(launch: Launch) -> tuple[int, int]:
    """Bytes that a launch's descriptors ask to be read (features, weights, parameters, descriptors) and written."""
    config, read, written = launch.program.config, 0, 0
    for unit in launch.units:
        for record in unit.descriptors:
            job = {name: int(record[name]) for name in descriptor.DTYPE.names or ()}
            read += ceil_div(descriptor.USED_BYTES, config.port_bytes) * config.port_bytes
            if job["flags"] & Flag.LOAD:
                read += job["load_words"] * job["load_segments"] * config.vec
            if job["flags"] & Flag.LOAD_ONLY:
                continue
            weights = job["steps"] * config.vec * job["weight_passes"]
            read += job["groups_out"] * config.lanes * (weights + params.PARAM_BYTES)
            planes = job["images"] * job["dst_groups"] * config.vec
            written += planes * job["out_h"] * job["out_w"] * bool(job["flags"] & Flag.WRITE_CONV)
            written += planes * job["pool_h"] * job["pool_w"] * bool(job["flags"] & Flag.WRITE_POOL)
    return read, written


def _network(config: Config, rows: tuple[Row, ...]) -> Program:
    """A whole network, all weights zero."""
    layers: list[Layer] = []
    for row in rows:
        plain, fold = _layers(config, row)
        source, frac = (layers[-1].name, layers[-1].out_frac) if layers else (INPUT, plain.in_frac)
        layers.append(fold if not layers else replace(plain, sources=(source,), in_frac=frac))
    weights = {layer.name: np.zeros(layer.weight_shape, np.int8) for layer in layers}
    biases = {layer.name: np.zeros(layer.out_channels, np.int32) for layer in layers}
    return Program(config, tuple(layers), weights, biases, rows[0][1], layers[0].in_frac)


def _array_cycles(layer: Layer, config: Config) -> int:
    m, oh, ow = layer.conv_shape
    return oh * ow * ceil_div(m, config.lanes) * steps(layer, config)


def as_dict(results: list[LayerCycles]) -> dict[str, Any]:
    """JSON-ready: `layers`, the totals over all convolutions and all fully connected layers, and `chaining`."""
    totals = []
    for network, array, kind in sorted({(r.network, r.array, r.kind) for r in results}):
        chosen = [r for r in results if (r.network, r.array, r.kind) == (network, array, kind)]
        cycles, ideal = sum(r.cycles for r in chosen), sum(r.ideal for r in chosen)
        total = {"network": network, "array": array, "kind": kind, "cycles": cycles, "ideal": ideal}
        totals.append(total | {"ratio": round(cycles / ideal, 4)})
    return {"layers": [asdict(result) for result in results], "totals": totals, "chaining": chaining()}
