"""The roofline: the fewest cycles that an array's steps and a memory's bandwidth allow, and which of them binds.

S. Williams, A. Waterman and D. Patterson 2009, "Roofline: an insightful visual performance model for multicore
architectures". The memory port reads and writes at once, each at the memory's bandwidth, so bytes are those of the
busier of the two channels.
"""

from __future__ import annotations

import math
from typing import Literal

from host.schedule.cycles import Memory
from host.schedule.traffic import Traffic
from hw.config import Config

Bound = Literal["compute", "memory", "latency"]


def bandwidth(memory: Memory, config: Config) -> float:
    """Bytes a cycle of each channel: the memory's, or the port's where that is less."""
    return config.port_bytes / memory.beat(config)


def moving(traffic: Traffic, rate: float) -> int:
    """Fewest cycles in which a memory of `rate` bytes a cycle and channel moves these bytes."""
    return math.ceil(max(traffic) / rate)


def fewest(steps: int, traffic: Traffic, rate: float) -> int:
    """The roofline in cycles: the longer of the array's steps, one a cycle, and the bytes' moving."""
    return max(steps, moving(traffic, rate))


def attainable(intensity: float, config: Config, rate: float) -> float:
    """The roofline as it is drawn: MACs a cycle at `intensity` MACs a byte of the busier channel."""
    return min(float(config.lanes * config.vec), intensity * rate)


def bound(cycles: float, steps: int, traffic: Traffic, rate: float) -> Bound:
    """What a layer's cycles are spent on.

    "compute" or "memory", whichever side of the roofline is longer; but "latency" where not even the longer one
    accounts for half of the cycles: these go to first beats, hand-overs between jobs, and loads, results and computing
    that do not overlap.
    """
    if 2 * fewest(steps, traffic, rate) < cycles:
        return "latency"
    return "compute" if steps >= moving(traffic, rate) else "memory"
