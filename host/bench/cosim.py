"""Speed of the co-simulation, side by side with a plain C++ loop over the same model, memory image and descriptors."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import closing
from typing import Any

import numpy as np

from host.compiler import compile as compiler
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice, arguments
from host.models import lenet5
from host.program.arrangement import pack_weights
from host.program.program import Program
from host.schedule import memory
from host.schedule.launch import Launch, schedule
from hw import layout
from hw.config import Config
from sim.build import build
from sim.client import Simulator

BATCH = 64
ROUNDS = 9


def _program(config: Config, images: Any) -> Program:
    return compiler.compile(lenet5(pretrained=True), config, calibrate=images)


def _fill(device: SimulationDevice, launch: Launch, x: np.ndarray) -> None:
    """Write everything that a launch reads."""
    program = launch.program
    for at in launch.positions:
        layer = program.layers[at]
        weights = pack_weights(program.weights[layer.name], layer, device.config)
        shift = np.asarray(layer.shift)
        params = layout.pack_params(program.biases[layer.name], shift, device.config.lanes, device.config.vec)
        device.write(launch.memory[memory.weights_name(layer.name)].address, weights)
        device.write(launch.memory[memory.params_name(layer.name)].address, params)
    device.write(launch.memory[memory.input_name("input")].address, device.reorder(program.fold_input(x)))


def measure(config: Config | None = None, *, batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, float | int]:
    """Measure LeNet-5 on the simulation.

    The plain loop and the co-simulation run in turns, so that a machine's changing load meets both, and each is
    judged by its median. The plain loop is timed inside its process, from start to interrupt; the co-simulation from
    outside, from the call of `SimulationDevice.launch` to its return.

    Parameters
    ----------
    config : Config, optional
    batch : int
        Images of one launch.
    rounds : int

    Returns
    -------
    dict
        raw_cycles_per_second, cosim_cycles_per_second : clock cycles simulated in a second, one process
        ratio : of the two
        images_per_second : through all compute units, with write and read of the tensors
        mac_utilisation : share of cycles in which the array executes a step
        launch_overhead_us : wall time of a launch that is not simulation
        batch, processes, cycles : of the measurement
    """
    import torch

    config = config or Config()
    torch.manual_seed(0)
    images = torch.rand(batch, 1, 28, 28)
    program = _program(config, images)
    x = program.quantise_input(images)
    raw_speed, cosim_speed, overhead = [], [], []
    with (
        closing(SimulationDevice(config, processes=1)) as device,
        closing(Simulator(build(config, variant="raw"), device.memory)) as raw,
    ):
        (positions,) = (positions for _, positions in program.segments())
        launch = schedule(program, positions, batch, writeback=False, memory_bytes=device.memory_bytes)
        _fill(device, launch, x)
        (simulator,) = device.simulators
        device.launch(launch)
        expected = device.read(launch.memory[launch.result].address, launch.memory[launch.result].nbytes)
        for _ in range(rounds):
            device.write(launch.memory[launch.result].address, np.zeros_like(expected))
            raw.launch(arguments(launch.units[0]), launch.max_cycles)
            raw_speed.append(raw.page["launch_cycles"] / raw.page["launch_ns"] * 1e9)
            same = device.read(launch.memory[launch.result].address, expected.size)
            if not np.array_equal(same, expected):
                raise AssertionError("the plain loop computed something else than the co-simulation")
            start = time.perf_counter_ns()
            report = device.launch(launch)
            wall = time.perf_counter_ns() - start
            cosim_speed.append(report.cycles / wall * 1e9)
            overhead.append((wall - simulator.page["launch_ns"]) / 1000)
    with closing(SimulationDevice(config)) as device:
        runtime = Runtime(program, device)
        runtime.forward(x, writeback=False)
        walls = []
        for _ in range(rounds):
            start = time.perf_counter_ns()
            runtime.forward(x, writeback=False)
            walls.append((time.perf_counter_ns() - start) / 1e9)
        processes = device.units
    raw_median, cosim_median = statistics.median(raw_speed), statistics.median(cosim_speed)
    return {
        "raw_cycles_per_second": round(raw_median),
        "cosim_cycles_per_second": round(cosim_median),
        "ratio": round(cosim_median / raw_median, 4),
        "images_per_second": round(batch / statistics.median(walls), 1),
        "mac_utilisation": round(report.mac_cycles / report.cycles, 4),
        "launch_overhead_us": round(statistics.median(overhead), 1),
        "batch": batch,
        "processes": processes,
        "cycles": report.cycles,
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
