"""What the overclocking instrumentation costs in simulation, side by side with the plain build."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import numpy as np

from host.bench.cosim import _fill, _program
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice, arguments
from host.faults.conditions import Clock, Conditions
from host.faults.plan import FaultPlan
from host.schedule.launch import Launch, schedule
from hw.config import Config
from hw.delays import Table
from hw.masks import MOST_GROUPS
from sim.build import build
from sim.client import Simulator
from sim.timing import shipped

SHARES = (None, 1.0, 0.97, 0.91, 0.85, 0.8, 0.75)
"""Clock periods, as shares of the table's safe one; None: without a delay table."""


def measure(
    config: Config | None = None,
    *,
    table: Table | None = None,
    shares: Sequence[float | None] = SHARES,
    batch: int = 32,
    rounds: int = 7,
) -> dict[str, Any]:
    """Simulated cycles a second of LeNet-5, the plain loop over the Verilated model, all builds and clocks in turns.

    Parameters
    ----------
    config : Config, optional
        Without instrumentation.
    table : Table, optional
        By default the first that comes with Redline.
    shares : sequence of float or None
    batch, rounds : int

    Returns
    -------
    dict
        plain_cycles_per_second : of the build without instrumentation
        clocks : for each share, its period (ps), cycles_per_second, ratio to the plain build, the groups of each bank
        in which a bit is late, the reference's seconds for the batch, and whether the RTL gave the reference's bytes
    """
    import torch

    config = config or Config()
    table = table or shipped.load(config.lanes, config.vec)
    torch.manual_seed(0)
    images = torch.rand(batch, 1, 28, 28)
    with ExitStack() as stack:
        builds = {}
        for built in (config, replace(config, overclock=MOST_GROUPS)):
            program = _program(built, images)
            x = program.quantise_input(images)
            device = stack.enter_context(closing(SimulationDevice(built, processes=1)))
            raw = stack.enter_context(closing(Simulator(build(built, variant="raw"), device.memory)))
            ((_, positions),) = program.segments()
            launch = schedule(program, positions, batch, writeback=False, memory_bytes=device.memory_bytes)
            _fill(device, launch, x)
            device.launch(launch)
            builds[built.overclock] = device, raw, launch, program
        plans: dict[float | None, FaultPlan] = {}
        for share in shares:
            period = 0 if share is None else round(share * table.onset_ps)
            conditions = None if share is None else Conditions(Clock(table, period, 1.0))
            plans[share] = FaultPlan.of(program.names).under(conditions)
        plain: list[float] = []
        found: dict[float | None, list[float]] = {share: [] for share in shares}
        for _ in range(rounds):
            device, raw, launch, _ = builds[0]
            plain.append(_speed(raw, launch))
            device, raw, launch, _ = builds[MOST_GROUPS]
            for share in shares:
                here = launch.with_faults(plans[share], 0)
                device.write(here.units[0].late_masks_address, here.units[0].late_masks)
                found[share].append(_speed(raw, here))
        device, _, _, program = builds[MOST_GROUPS]
        last = program.layers[-1].name
        clocks = []
        for share in shares:
            conditions = plans[share].conditions
            banks = {} if conditions is None else conditions.banks(program.config)
            runtime = Runtime(program, ReferenceDevice(program.config))
            started = time.perf_counter()
            expected = runtime.forward(x, plan=plans[share]).out[last]
            seconds = time.perf_counter() - started
            found_bytes = Runtime(program, device).forward(x, writeback=False, plan=plans[share]).out[last]
            clocks.append(
                {
                    "share": share,
                    "period_ps": None if share is None else round(share * table.onset_ps),
                    "cycles_per_second": round(statistics.median(found[share])),
                    "ratio": round(statistics.median(found[share]) / statistics.median(plain), 3),
                    "groups": {name: masks.groups for name, masks in banks.items()},
                    "reference_seconds": round(seconds, 2),
                    "same_bytes": np.array_equal(found_bytes, expected),
                }
            )
    return {"plain_cycles_per_second": round(statistics.median(plain)), "batch": batch, "clocks": clocks}


def _speed(raw: Simulator, launch: Launch) -> float:
    """Simulated cycles a second of one launch of the plain loop."""
    raw.launch(arguments(launch.units[0]), launch.max_cycles)
    return raw.page["launch_cycles"] / raw.page["launch_ns"] * 1e9


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
