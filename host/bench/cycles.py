"""How well the cycle model predicts the RTL: random networks' launches on every accelerator of `redline verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from host.devices.simulation import SimulationDevice
from host.schedule.cycles import Memory, estimate
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import run_case
from hw.config import Config

MEMORIES = (
    Memory(),
    Memory(100, 4.0),
    Memory(8, 2.0),
    Memory(200),
    Memory(64, 7.5),
    Memory(1),
    Memory(500),
    Memory(32, 1.0),
    Memory(20, 3.3),
    Memory(1000, 16.0),
)
"""Latencies from 1 to 1000 cycles; bandwidths from a sixteenth of a beat to a whole one a cycle, some no whole part."""


def errors(config: Config, memory: Memory, seed: int, numbers: range) -> list[tuple[int, int]]:
    """(predicted, counted) cycles of the launches of random networks, with write-back and without, fault-free."""
    found = []
    with SimulationDevice(
        config,
        processes=1,
        memory_bytes=1 << 24,
        latency=memory.latency,
        bytes_per_cycle=memory.bytes_per_cycle,
    ) as device:
        for number in numbers:
            case = replace(random_case(seed, number, configs=(config,)), plan=None, units=1)
            for snapshot in run_case(case, device):
                found.append((round(estimate(snapshot.launch, memory).cycles), snapshot.report.cycles))
    return found


def measure(cases: int = 1, seed: int = 1, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The distribution of the model's relative errors.

    Parameters
    ----------
    cases : int
        Random networks on each accelerator and each memory.
    seed : int
    progress : callable
        Told what is run.

    Returns
    -------
    dict
        launches : how many were predicted
        exact : share of them predicted to the cycle
        mean, median, p90, p99, worst : of the relative errors; all but the mean of their absolute values
        within_two_percent : share
        cycles : counted in all
    """
    pairs: list[tuple[int, int]] = []
    for at, config in enumerate(CONFIGS):
        for number, memory in enumerate(MEMORIES):
            progress(f"{config.lanes}x{config.vec}, latency {memory.latency}, {memory.bytes_per_cycle} B/cycle")
            first = (at * len(MEMORIES) + number) * cases
            pairs += errors(config, memory, seed, range(first, first + cases))
    predicted, counted = np.array(pairs, np.int64).T
    relative = predicted / counted - 1
    size = np.abs(relative)
    return {
        "launches": len(pairs),
        "exact": float(np.mean(predicted == counted)),
        "mean": float(relative.mean()),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "p99": float(np.quantile(size, 0.99)),
        "worst": float(size.max()),
        "within_two_percent": float(np.mean(size <= 0.02)),
        "cycles": int(counted.sum()),
    }
