"""What faults cost: from how many on a layer is better computed step by step than output by output."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from host.devices.emulator.native import Kernels
from host.faults.plan import SITES, FaultPlan
from host.program.arrangement import steps
from host.program.layers import INPUT, Layer
from host.program.program import Program
from hw.config import Config

CHANNELS, SIZE, OUTPUTS = 64, 12, 128
ROUNDS = 15
WALKS = 8
"""Outputs that are hit in each channel."""
LEAST = 1e-3
"""Below this share the difference is not worth the weights' second copy."""


@cache
def dense_from(kernels: Kernels) -> float:
    """Share of faulted outputs at which both ways take the same time; measured on a layer of middling size.

    Output by output costs the clean layer and a walk for each output that is hit; step by step costs the same for few
    faults and many. What any plan costs, however few its flips, is in both.
    """
    from host.devices.emulator.device import EmulatorDevice
    from host.devices.runtime import Runtime

    config = Config()
    program = _program(config)
    layer = program.layers[0]
    x = np.ones((1, *layer.in_shape), np.int8)
    m, h, w = layer.conv_shape
    # Some outputs of each channel: flips are spread in fact.
    hit = (np.arange(m)[:, None] * (h * w) + (np.arange(m)[:, None] + np.arange(WALKS) * 17) % (h * w)).reshape(-1)
    plan = FaultPlan.of(program.names, 0, 0, SITES.index("mac"), hit, np.arange(len(hit)) % steps(layer, config), 7)
    one = plan.where(slice(0, 1))
    seconds = {}
    for name, share, faults in (("one", 1.0, one), ("sparse", 1.0, plan), ("dense", 0.0, one)):
        device = EmulatorDevice(config, memory_bytes=1 << 24, kernels=kernels, dense_from=share)
        runtime = Runtime(program, device)
        runtime.forward(x, plan=faults)
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            runtime.forward(x, plan=faults)
            times.append(time.process_time() - start)
        seconds[name] = min(times)
    walk = max(seconds["sparse"] - seconds["one"], 1e-9) / ((len(hit) - 1) / (m * h * w))
    return min(1.0, max(LEAST, (seconds["dense"] - seconds["one"]) / walk))


def _program(config: Config) -> Program:
    shape = (CHANNELS, SIZE, SIZE)
    layer = Layer("middling", (INPUT,), shape, OUTPUTS, (3, 3), (1, 1), (1, 1), True, None, 0, (0,) * OUTPUTS, -10)
    weight = np.random.default_rng(0).integers(-128, 128, layer.weight_shape).astype(np.int8)
    bias = np.zeros(OUTPUTS, np.int32)
    return Program(config, (layer,), {layer.name: weight}, {layer.name: bias}, shape, 0)
