"""A view of a replayed trial's waveform: GTKWave's save file, opened at the cycle of the fault."""

from __future__ import annotations

import io
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from vcd.gtkw import GTKWSave

from host.campaign.replay import CYCLE_NS, Replay
from host.store.files import write_atomic
from hw.config import Config

TOP = "redline_system"
"""The scope of the probes in the waveform."""
BEFORE = 20
"""Cycles shown before the fault."""
PS = 1000
"""Units of the waveform's time, picoseconds, in a nanosecond."""
VIEWER = "gtkwave"
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


def signals(config: Config) -> dict[str, list[str]]:
    """The clock and the probes, with their bits, by stage."""
    words = {
        "clock": {"ap_clk": 1},
        "operands": {
            "probe_step_valid": 1,
            "probe_step_features": 8 * config.vec,
            "probe_step_weights": 8 * config.lanes * config.vec,
        },
        "accumulators": {"probe_acc_valid": 1, "probe_acc": 32 * config.lanes},
        "requantised": {"probe_requant_valid": 1, "probe_requant": 8 * config.lanes},
        "final outputs": {"probe_pool_valid": 1, "probe_pool": 8 * config.lanes},
    }
    return {
        stage: [f"{TOP}.{name}" + (f"[{bits - 1}:0]" if bits > 1 else "") for name, bits in named.items()]
        for stage, named in words.items()
    }


def write_view(found: Replay) -> Path | None:
    """Write the save file beside the waveform; None if there is no waveform, or no fault in it.

    The primary marker is where the wrong value begins to stand, the marker A at the clock edge at which the probes note
    it, one cycle later.
    """
    if not found.waves or found.time_ns is None:
        return None
    path = found.waves[0].with_suffix(".gtkw")
    at, cycle = PS * found.time_ns, PS * CYCLE_NS
    text = io.StringIO()
    view = GTKWSave(text)
    view.dumpfile(str(found.waves[0].absolute()))
    view.timestart(max(0, at - BEFORE * cycle))
    view.zoom_markers(-16.0, at, a=at + cycle)  # type: ignore[arg-type]  # the annotation is that of the whole dict
    for stage, names in signals(found.config).items():
        view.blank(stage)
        for name in names:
            view.trace(name)
    write_atomic(path, text.getvalue())
    return path


def command(view: Path) -> str:
    """What shows a view, for a shell."""
    return shlex.join([VIEWER, str(view)])


def show(view: Path, environment: Mapping[str, str] | None = None) -> str:
    """Open a view, if that is possible here; says what became of it."""
    environment = os.environ if environment is None else environment
    viewer = shutil.which(VIEWER, path=environment.get("PATH"))
    if viewer is None:
        return f"not opened: no {VIEWER} here; it is in the distributions' packages of that name"
    if not any(environment.get(name) for name in DISPLAYS):
        return f"not opened: no display here ({' and '.join(DISPLAYS)} are not set)"
    # It outlives this process, so nobody waits for it; its messages are its own.
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in range(3)]
    os.posix_spawn(viewer, [viewer, str(view)], dict(environment), file_actions=silent, setsid=True)
    return f"opened in {viewer}"
