"""Launches of the generated kernel, driven as XRT does by what kernel.xml says, against the reference device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest

from host.devices.device import LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.stuck import StuckAt
from host.schedule.launch import Launch
from hw.config import Config
from sim.bench import run_bench
from tests.hw.vitis.kernels import CONFIGS, package, shell
from tests.sim.test_accelerator import small_cases

LISTS = ("descriptors", "mac_events", "feature_events", "late_masks")
MARK = 0xA5
"""Results are written over what no correct result leaves in place."""

FAULTS = {
    "small": SoftErrors(0.01, per="mac") + SoftErrors(0.01, sites="feature"),
    "narrow": SoftErrors(0.001, sites=("weight", "input")),
    "widest": SoftErrors(0.001, sites=("weight", "input")),
    "late": StuckAt(lane=1, bit=7, value=1) + StuckAt(lane=0, bit=30, value=0),
}
"""Those that each build has instruments for."""


@dataclass
class Recorder(ReferenceDevice):
    """A reference device that keeps each launch as an OpenCL host would give it: memory, and lists of their own."""

    folder: Path
    config: Config
    paths: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.config, memory_bytes=1 << 18)

    __hash__ = object.__hash__

    def launch(self, launch: Launch) -> LaunchReport:
        (unit,) = launch.units
        written = 0
        for name in launch.written:
            region = launch.memory[name]
            self.write(region.address, np.full(region.nbytes, MARK, np.uint8))
            written += region.nbytes
        before = self.read(0, self.memory_bytes)
        report = super().launch(launch)
        self.paths.append(self.folder / f"launch{len(self.paths)}.npz")
        lists = {name: getattr(unit, name).view(np.uint8) for name in LISTS}
        np.savez(
            self.paths[-1],
            before=before,
            after=self.read(0, self.memory_bytes),
            max_cycles=launch.max_cycles,
            faults=launch.faults,
            bytes_written=written,
            **lists,
        )
        return report


@pytest.mark.parametrize(("name", "pause"), [*((name, 0.4) for name in CONFIGS), ("small", 0.0), ("widest", 0.0)])
def test_the_kernel_does_what_xrt_and_the_reference_expect(name: str, pause: float, tmp_path: Path) -> None:
    config, files = CONFIGS[name], package(CONFIGS[name])
    (tmp_path / "kernel.xml").write_text(files["kernel.xml"])
    device = Recorder(tmp_path, config)
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
