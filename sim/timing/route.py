"""Runs synthesis and place and route: from the lanes' harness to a routed netlist with delays, in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sim import toolchain
from sim.cache import cache_directory, cached, digest
from sim.timing import floorplan, netlist, registers
from sim.timing.analysis import Adder
from sim.timing.floorplan import place_multipliers
from sim.timing.harness import CLOCK, INPUT, OUTPUT, TOP, lanes_source, requantiser_source, source_hash
from sim.toolchain import NEXTPNR_ECP5, YOSYS

PART, PACKAGE, SPEED_GRADE = "LFE5U-85F", "CABGA381", "6"
TARGET_MHZ = {"lanes": 200, "requantiser": 300}
"""What the placer is asked for: a little more than it reaches."""
PADS = {CLOCK: "G2", INPUT: "B11", OUTPUT: "C11"}
"""The clock's pad reaches the global network; from others some seeds fail to route."""
EXTRA = "timing"
"""Of Redline's package: brings the tools."""

PACKING = 1
"""Raised whenever what happens between synthesis and placement changes."""

_MERGE = "simplemap t:$dff*; opt_expr; opt_merge; wreduce; opt -full; opt_clean -purge; "
"""Equal registers become one, and what they feed as narrow as it can be: one level of the lane's pipeline a time."""
_LEVELS = 6
_SYNTHESIS = (
    f"read_rtlil source.il; hierarchy -top {TOP}; proc; flatten; opt -full; {_MERGE * _LEVELS}"
    f"synth_ecp5 -top {TOP} -noflatten -json synthesised.json"
)


@dataclass(frozen=True)
class Routed:
    """One placed and routed harness.

    Attributes
    ----------
    folder : Path
        In the cache: what the tools wrote.
    """

    lanes: int
    vec: int
    seed: int
    source_sha256: str
    tools: dict[str, str]
    folder: Path
    requantiser: Path

    @cached_property
    def netlist(self) -> netlist.Netlist:
        """The netlist with its delays."""
        return netlist.load(self.folder / "routed.json", self.folder / "delays.sdf")

    @cached_property
    def adders(self) -> list[list[Adder]]:
        """For each lane, where its banks are."""
        top = json.loads((self.folder / "packed.json").read_text())["modules"][TOP]
        return registers.adders(top, self.lanes, self.vec)

    @cached_property
    def report(self) -> dict[str, Any]:
        """nextpnr's own report of the lanes."""
        return json.loads((self.folder / "report.json").read_text())

    @cached_property
    def requantiser_report(self) -> dict[str, Any]:
        """nextpnr's own report of one requantiser."""
        return json.loads((self.requantiser / "report.json").read_text())


def _ignore(message: str) -> None:
    pass


def route(lanes: int, vec: int, seed: int, *, progress: Callable[[str], None] = _ignore) -> Routed:
    """Place and route `lanes` lanes of `vec` products, or take them from the cache. 16 x 8 takes minutes.

    Parameters
    ----------
    lanes, vec : int
        Of the array.
    seed : int
        Of the placement.
    progress : callable
        Is told what is being done.

    Raises
    ------
    ToolchainError
        If a tool is missing or fails.
    ConfigError
        If the accelerator has no such array.
    """
    source = lanes_source(lanes, vec)
    tools = toolchain.versions((YOSYS, NEXTPNR_ECP5), EXTRA)

    def place(top: dict[str, Any]) -> None:
        place_multipliers(top, lanes, vec)

    folder = _routed("lanes", source, seed, tools, place, progress)
    requantiser = _routed("requantiser", requantiser_source(), seed, tools, _anywhere, progress)
    return Routed(lanes, vec, seed, source_hash(lanes, vec), tools, folder, requantiser)


def _anywhere(top: dict[str, Any]) -> None:
    pass


def _routed(
    what: str,
    source: str,
    seed: int,
    tools: dict[str, str],
    place: Callable[[dict[str, Any]], None],
    progress: Callable[[str], None],
) -> Path:
    constraints = "".join(
        f'LOCATE COMP "{name}" SITE "{site}";\nIOBUF PORT "{name}" IO_TYPE=LVCMOS33;\n' for name, site in PADS.items()
    )
    constraints += f'FREQUENCY PORT "{CLOCK}" {TARGET_MHZ[what]} MHZ;\n'
    options = ["--85k", "--package", PACKAGE, "--speed", SPEED_GRADE, "--seed", str(seed)]
    options += ["--json", "packed.json", "--lpf", "pads.lpf", "--router", "router2", "--timing-allow-fail"]
    options += ["--write", "routed.json", "--sdf", "delays.sdf", "--report", "report.json", "--detailed-timing-report"]
    plan = [floorplan.ROWS, floorplan.GROUPS, floorplan.SITES]
    key = digest(
        {
            "source": source,
            "script": _SYNTHESIS,
            "pads": constraints,
            "plan": plan,
            "options": options,
            "tools": tools,
            "packing": PACKING,
        }
    )

    def make(folder: Path) -> None:
        (folder / "source.il").write_text(source)
        (folder / "pads.lpf").write_text(constraints)
        progress(f"{what}: synthesis")
        toolchain.run(YOSYS, ["-q", "-p", _SYNTHESIS], folder, extra=EXTRA, progress=progress)
        design = json.loads((folder / "synthesised.json").read_text())
        registers.pack(design["modules"][TOP])
        place(design["modules"][TOP])
        (folder / "packed.json").write_text(json.dumps(design))
        (folder / "synthesised.json").unlink()
        progress(f"{what}: place and route, seed {seed}")
        toolchain.run(NEXTPNR_ECP5, options, folder, extra=EXTRA, progress=progress)

    # A cache of its own: nobody who builds a simulator shall wait minutes for the lock.
    return cached("routed", key, make, directory=cache_directory() / "timing")
