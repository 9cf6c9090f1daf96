"""The whole accelerator between independent AXI models, on random networks and fault plans, against the reference."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.devices.device import LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import arguments
from host.faults.models import Fault
from host.program.arrangement import steps
from host.schedule.launch import Launch, Unit
from host.verification.cases import CONFIGS, Case, random_case
from hw.config import Config
from hw.registers import OFFSET
from sim.bench import run_bench
from sim.build import verilog_for
from tests.sim.fixtures.toy import copies, toy_verilog

BENCH = "tests.sim.benches.accelerator"
MOST_STEPS = 2500
"""Array steps of one launch: a bench in Python runs some thousand cycles a second."""


def with_ids(verilog: str, config: Config) -> str:
    """The accelerator in a shell that adds AXI's ID signals, which the AXI models demand, and which are always 0."""
    beat = config.port_bits - 1
    ports = {
        "input": "ap_clk ap_rst_n s_axi_control_awvalid s_axi_control_awaddr[7:0] s_axi_control_wvalid "
        "s_axi_control_wdata[31:0] s_axi_control_wstrb[3:0] s_axi_control_bready s_axi_control_arvalid "
        "s_axi_control_araddr[7:0] s_axi_control_rready m_axi_gmem_awready m_axi_gmem_wready m_axi_gmem_bvalid "
        f"m_axi_gmem_bresp[1:0] m_axi_gmem_arready m_axi_gmem_rvalid m_axi_gmem_rdata[{beat}:0] m_axi_gmem_rlast "
        "m_axi_gmem_rresp[1:0]",
        "output": "interrupt s_axi_control_awready s_axi_control_wready s_axi_control_bvalid s_axi_control_bresp[1:0] "
        "s_axi_control_arready s_axi_control_rvalid s_axi_control_rdata[31:0] s_axi_control_rresp[1:0] "
        "m_axi_gmem_awvalid m_axi_gmem_awaddr[63:0] m_axi_gmem_awlen[7:0] m_axi_gmem_awsize[2:0] "
        f"m_axi_gmem_awburst[1:0] m_axi_gmem_wvalid m_axi_gmem_wdata[{beat}:0] "
        f"m_axi_gmem_wstrb[{config.port_bytes - 1}:0] m_axi_gmem_wlast m_axi_gmem_bready m_axi_gmem_arvalid "
        "m_axi_gmem_araddr[63:0] m_axi_gmem_arlen[7:0] m_axi_gmem_arsize[2:0] m_axi_gmem_arburst[1:0] "
        "m_axi_gmem_rready",
    }
    declared, connected = [], []
    for direction, text in ports.items():
        for port in text.split():
            name, _, width = port.partition("[")
            declared.append(f"{direction} {'[' + width if width else ''} {name}")
            connected.append(f".{name}({name})")
    declared += [f"output m_axi_gmem_{name}" for name in ("awid", "arid")]
    declared += [f"input m_axi_gmem_{name}" for name in ("bid", "rid")]
    shell = f"module peer({', '.join(declared)});\n  assign m_axi_gmem_awid = 0, m_axi_gmem_arid = 0;\n"
    return f"{shell}  redline dut({', '.join(connected)});\nendmodule\n{verilog}"


@dataclass
class Recorder(ReferenceDevice):
    """A reference device that keeps each launch: registers, memory before and memory after."""

    folder: Path
    config: Config
    paths: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.config, memory_bytes=1 << 18)

    __hash__ = object.__hash__

    def launch(self, launch: Launch) -> LaunchReport:
        (unit,) = launch.units
        self.place(unit)
        # Results are written over what no correct result leaves in place.
        for name in launch.written:
            region = launch.memory[name]
            self.write(region.address, np.full(region.nbytes, 0xA5, np.uint8))
        before = self.read(0, self.memory_bytes)
        report = super().launch(launch)
        self.paths.append(self.folder / f"launch{len(self.paths)}.npz")
        self.keep(self.paths[-1], before, self.read(0, self.memory_bytes), launch)
        return report

    def place(self, unit: Unit) -> None:
        """Put the launch's lists where its registers say."""
        self.write(unit.descriptors_address, unit.descriptors)
        self.write(unit.mac_events_address, unit.mac_events)
        self.write(unit.feature_events_address, unit.feature_events)

    def keep(self, path: Path, before: np.ndarray, after: np.ndarray, launch: Launch) -> None:
        """Write one launch for the bench."""
        save(path, before, after, arguments(launch.units[0]), launch.max_cycles, launch.faults)


def save(
    path: Path, before: np.ndarray, after: np.ndarray, values: dict[str, int], max_cycles: int, faults: int
) -> None:
    """Write one launch for the bench."""
    words = {"gie": 1, "ier": 1}
    for name, value in values.items():
        if name in OFFSET:
            words[name] = value
        else:
            words |= {f"{name}_lo": value & 0xFFFFFFFF, f"{name}_hi": value >> 32}
    np.savez(path, before=before, after=after, registers=json.dumps(words), max_cycles=max_cycles, faults=faults)


def small_cases(config: Config, seed: int, wanted: int, faults: Fault | None = None) -> list[Case]:
    """The first random cases of a seed that a bench in Python gets through in seconds."""
    found: list[Case] = []
    most = MOST_STEPS if config.control == "pipeline" else MOST_STEPS // 50  # a microprogram takes longer for each
    for number in count():
        case = random_case(seed, number, faults, configs=(config,))
        total = sum(
            steps(layer, config) * int(np.prod(layer.conv_shape)) for layer in case.program.layers
        ) * len(case.x)  # fmt: skip
        if total // config.lanes < most:
            found.append(case)
        if len(found) == wanted:
            return found
    raise AssertionError


PAUSED = [(0, 0.3), (1, 0.7), (2, 0.0), (8, 0.3)]
"""Accelerators, and how likely each channel pauses; those with a microprogram take long."""
MORE = [(0, 0.0), (0, 0.7), (1, 0.0), (1, 0.3), (2, 0.3), (2, 0.7), (9, 0.7)]


@pytest.mark.parametrize(
    ("which", "pause"),
    [
        pytest.param(at, pause, id=f"{CONFIGS[at].lanes}x{CONFIGS[at].vec} {CONFIGS[at].control} {pause}", marks=marks)
        for cases, marks in ((PAUSED, ()), (MORE, pytest.mark.slow))
        for at, pause in cases
    ],
)
def test_random_networks_on_the_accelerator_equal_the_reference(which: int, pause: float, tmp_path: Path) -> None:
    config = CONFIGS[which]
    device = Recorder(tmp_path, config)
    wanted = 4 if config.control == "pipeline" else 2
    for case in small_cases(config, seed=int(100 * pause) + which, wanted=wanted):
        Runtime(case.program, device).forward(
            case.x, writeback=case.writeback, plan=case.plan, first_image=case.first_image
        )
    bench(with_ids(verilog_for(config), config), device.paths, pause)


@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_the_toy_between_the_same_models(pause: float, tmp_path: Path) -> None:
    config = Config()
    before = np.random.default_rng(1).integers(0, 256, 1 << 15).astype(np.uint8)
    records = copies((0x1000, 0x4010, 2048), (0x2000, 0x6000, 16))
    before[0x400 : 0x400 + records.nbytes] = records.view(np.uint8)
    after = before.copy()
    after[0x4010:0x4810] = before[0x1000:0x1800]
    after[0x6000:0x6010] = before[0x2000:0x2010]
    save(tmp_path / "copy.npz", before, after, {"descriptors": 0x400, "jobs": 2}, 20_000, 0)
    bench(with_ids(toy_verilog(config), config), [tmp_path / "copy.npz"], pause)


def bench(verilog: str, paths: list[Path], pause: float) -> None:
    """Run the bench on some launches."""
    cases: dict[str, Any] = {"CASES": json.dumps([str(path) for path in paths]), "PAUSE": pause}
    run_bench(verilog, "peer", BENCH, parameters=cases)
