"""Launches of the generated kernel, driven as XRT does by what kernel.xml says, against the reference device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.stuck import StuckAt
from host.schedule.launch import Launch, Unit
from sim.bench import run_bench
from tests.hw.vitis.kernels import CONFIGS, package, shell
from tests.sim.test_accelerator import Recorder, small_cases

LISTS = ("descriptors", "mac_events", "feature_events", "late_masks")

FAULTS = {
    "small": SoftErrors(0.01, per="mac") + SoftErrors(0.01, sites="feature"),
    "narrow": SoftErrors(0.001, sites=("weight", "input")),
    "widest": SoftErrors(0.001, sites=("weight", "input")),
    "late": StuckAt(lane=1, bit=7, value=1) + StuckAt(lane=0, bit=30, value=0),
}
"""Those that each build has instruments for."""


class OpenclRecorder(Recorder):
    """Keeps each launch as an OpenCL host would give it: memory, and lists of their own."""

    def place(self, unit: Unit) -> None:
        pass

    def keep(self, path: Path, before: np.ndarray, after: np.ndarray, launch: Launch) -> None:
        np.savez(
            path,
            before=before,
            after=after,
            max_cycles=launch.max_cycles,
            faults=launch.faults,
            bytes_written=sum(launch.memory[name].nbytes for name in launch.written),
            **{name: getattr(launch.units[0], name).view(np.uint8) for name in LISTS},
        )


@pytest.mark.parametrize(("name", "pause"), [*((name, 0.4) for name in CONFIGS), ("small", 0.0), ("widest", 0.0)])
def test_the_kernel_does_what_xrt_and_the_reference_expect(name: str, pause: float, tmp_path: Path) -> None:
    config, files = CONFIGS[name], package(CONFIGS[name])
    (tmp_path / "kernel.xml").write_text(files["kernel.xml"])
    device = OpenclRecorder(tmp_path, config)
    for case in small_cases(config, seed=5 + int(10 * pause), wanted=2, faults=FAULTS[name]):
        Runtime(case.program, device).forward(
            case.x, writeback=case.writeback, plan=case.plan, first_image=case.first_image
        )
    # Each build's own lists are in use.
    used = [name for name in LISTS if any(len(np.load(path)[name]) for path in device.paths)]
    assert used == [
        "descriptors",
        *(("mac_events", "feature_events") if config.saboteur else ()),
        *(("late_masks",) if config.overclock else ()),
    ]
    parameters: dict[str, object] = {
        "CONFIG": json.dumps(asdict(config)),
        "CASES": json.dumps([str(path) for path in device.paths]),
        "KERNEL_XML": tmp_path / "kernel.xml",
        "PAUSE": pause,
    }
    run_bench(shell(files["redline.v"]), "peer", "tests.hw.vitis.bench", parameters=parameters)
