"""A view of a replayed trial's waveform: GTKWave's save file, opened at the cycle of the fault."""

from __future__ import annotations

from pathlib import Path

from host.campaign.replay import CYCLE_NS, Replay
from host.store.files import write_atomic
from hw.config import Config

TOP = "redline_system"
"""The scope of the probes in the waveform."""
BEFORE = 20
"""Cycles shown before the fault."""


def signals(config: Config) -> list[str]:
    """The clock and the probes, with their bits."""
    words = {
        "probe_step_valid": 1,
        "probe_step_features": 8 * config.vec,
        "probe_step_weights": 8 * config.lanes * config.vec,
        "probe_acc_valid": 1,
        "probe_acc": 32 * config.lanes,
        "probe_requant_valid": 1,
        "probe_requant": 8 * config.lanes,
        "probe_pool_valid": 1,
        "probe_pool": 8 * config.lanes,
    }
    named = [f"{TOP}.{name}" + (f"[{bits - 1}:0]" if bits > 1 else "") for name, bits in words.items()]
    return [f"{TOP}.ap_clk", *named]


def write_view(found: Replay) -> Path | None:
    """Write the save file beside the waveform; None if there is no waveform, or no fault in it."""
    if not found.waves or found.time_ns is None:
        return None
    path = found.waves[0].with_suffix(".gtkw")
    at = 1000 * found.time_ns  # the waveform counts picoseconds
    start = max(0, at - 1000 * BEFORE * CYCLE_NS)
    # *zoom, primary marker, then 26 named markers that are not set.
    lines = [
        f'[dumpfile] "{found.waves[0].absolute()}"',
        f"[timestart] {start}",
        " ".join(["*-16.000000", str(at), *["-1"] * 26]),
        "@22",  # hexadecimal
        *signals(found.config),
    ]
    write_atomic(path, "\n".join(lines) + "\n")
    return path
