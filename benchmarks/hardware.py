"""Cycles of AlexNet's layers on the accelerator's RTL, beside the fewest an array of its size could take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from host.fold import folded
from host.layers import INPUT, Layer, Pool
from host.program import Program
from host.reference import ReferenceDevice
from host.runtime import Runtime
from host.simulation import SimulationDevice
from hw.config import Config
from hw.layout import ceil_div

FC_BATCH = 16
LATENCY = 100
"""Cycles from a read request to its first beat."""
OVERLAP_3 = Pool(3, 2)
# name, input (C, H, W), output channels, kernel, stride, padding, pooling: torchvision's AlexNet.
ALEXNET: tuple[tuple[str, tuple[int, int, int], int, int, int, int, Pool | None], ...] = (
    ("conv1", (3, 224, 224), 64, 11, 4, 2, OVERLAP_3),
    ("conv2", (64, 27, 27), 192, 5, 1, 2, OVERLAP_3),
    ("conv3", (192, 13, 13), 384, 3, 1, 1, None),
    ("conv4", (384, 13, 13), 256, 3, 1, 1, None),
    ("conv5", (256, 13, 13), 256, 3, 1, 1, OVERLAP_3),
    ("fc6", (256, 6, 6), 4096, 6, 1, 0, None),
    ("fc7", (4096, 1, 1), 4096, 1, 1, 0, None),
    ("fc8", (4096, 1, 1), 1000, 1, 1, 0, None),
)
LAYERS = tuple(row[0] for row in ALEXNET)
ARRAYS = {
    "16x8": Config(lanes=16, vec=8, port_bits=512, feature_bytes=1 << 19, weight_bytes=1 << 18, pool_columns=64),
    "32x16": Config(lanes=32, vec=16, port_bits=512, feature_bytes=1 << 20, weight_bytes=1 << 19, pool_columns=64),
}


@dataclass(frozen=True)
class LayerCycles:
    """One layer's measurement.

    Attributes
    ----------
    network, layer, kind, array, memory : str
        `kind` is "conv" or "fc"; `memory` is bandwidth and latency.
    batch : int
    cycles : int
        From start to done, counted by the accelerator: loading, computing, pooling and writing back.
    ideal : int
        For a convolution the array's steps, `out_h * out_w * ceil(M/LANES) * steps`, after folding; for a fully
        connected layer the larger of that (times the batch) and its weights' bytes over the memory's bandwidth.
    ideal_unfolded : int
        The same without folding the kernel's columns into channels.
    ratio : float
        `cycles / ideal`.
    fills_array : bool
        Input and output channels are multiples of VEC and LANES.
    exact : bool
        The outputs equal the reference device's.
    """

    network: str
    layer: str
    kind: str
    array: str
    memory: str
    batch: int
    cycles: int
    ideal: int
    ideal_unfolded: int
    ratio: float
    fills_array: bool
    exact: bool


def _program(config: Config, layer: Layer, input_shape: tuple[int, int, int], seed: int) -> Program:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-128, 128, layer.weight_shape, np.int8)
    biases = rng.integers(-1000, 1000, layer.out_channels, np.int32)
    return Program(config, (layer,), {layer.name: weights}, {layer.name: biases}, input_shape, layer.in_frac)


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
    results: list[LayerCycles] = []
    with (
        SimulationDevice(config, processes=1, latency=LATENCY, bytes_per_cycle=bytes_per_cycle) as device,
        ReferenceDevice(config) as reference,
    ):
        for name, shape, channels, kernel, stride, pad, pool in ALEXNET:
            if name not in names:
                continue
            progress(name)
            plain = Layer(
                name=name,
                input=INPUT,
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
            layer = folded(plain, config.vec)
            fully_connected = name.startswith("fc")
            batch = FC_BATCH if fully_connected else 1
            program = _program(config, layer, shape, seed=len(results))
            x = np.random.default_rng(1).integers(-128, 128, (batch, *shape), np.int8)
            outputs = Runtime(program, device).forward(x, writeback=False)
            expected = Runtime(program, reference).forward(x, writeback=False)
            ideal = batch * _array_cycles(layer, config)
            if fully_connected:
                ideal = max(ideal, ceil_div(int(np.prod(layer.weight_shape)), bytes_per_cycle))
            results.append(
                LayerCycles(
                    network="alexnet",
                    layer=name,
                    kind="fc" if fully_connected else "conv",
                    array=array,
                    memory=f"{bytes_per_cycle} B/cycle, {LATENCY} cycles",
                    batch=batch,
                    cycles=outputs.report.cycles,
                    ideal=ideal,
                    ideal_unfolded=batch * _array_cycles(plain, config),
                    ratio=round(outputs.report.cycles / ideal, 4),
                    fills_array=shape[0] % config.vec == 0 and channels % config.lanes == 0,
                    exact=bool(np.array_equal(outputs.out[name], expected.out[name])),
                )
            )
    return results


def _array_cycles(layer: Layer, config: Config) -> int:
    m, oh, ow = layer.conv_shape
    return oh * ow * ceil_div(m, config.lanes) * layer.steps(config.vec)


def as_dict(results: list[LayerCycles]) -> dict[str, Any]:
    """JSON-ready: `layers`, and the totals over all convolutions and all fully connected layers."""
    totals = {}
    for kind in ("conv", "fc"):
        chosen = [result for result in results if result.kind == kind]
        if chosen:
            cycles, ideal = sum(r.cycles for r in chosen), sum(r.ideal for r in chosen)
            totals[kind] = {"cycles": cycles, "ideal": ideal, "ratio": round(cycles / ideal, 4)}
    return {"layers": [asdict(result) for result in results], "totals": totals}
