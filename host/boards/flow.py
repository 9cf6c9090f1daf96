"""From a board to a bitstream: the chip as RTLIL, synthesis, place and route, packing; and a report of it all."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from host.boards import readme
from host.boards.family import FAMILIES, REPORT, RESOURCES, SOURCE, SYNTHESISED, Family
from hw.boards.board import SUFFIX, Board, BoardError
from hw.boards.chip import TOP, Chip
from hw.boards.pll import Setting
from hw.config import Config
from sim import toolchain
from sim.toolchain import YOSYS, Tool

EXTRA = "bitstream"
"""Of Redline's package: brings the tools."""
SCHEMA = 1
"""Of report and table."""


class FitError(BoardError):
    """The design needs more than the chip has.

    Attributes
    ----------
    report : dict
        As far as it goes: what synthesis needs, without clock and bitstream.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Design:
    """What is to go onto which board.

    Attributes
    ----------
    mhz : float
        The clock wished for; the PLL's nearest is made.
    seed : int
        Of the placement.
    """

    board: Board
    config: Config
    memory_bytes: int
    mhz: float
    baud: int
    seed: int = 1

    @property
    def setting(self) -> Setting:
        """Of the PLL. Raises `PllError` if it makes no such clock."""
        return self.board.pll.nearest(self.board.reference_mhz, self.mhz)

    def source(self) -> str:
        """The chip as RTLIL."""
        return Chip(self.board, self.setting, self.config, self.memory_bytes, self.baud).convert()


@dataclass(frozen=True)
class Progress:
    """Who is told what is going on.

    Attributes
    ----------
    step : callable
        A step begins.
    line : callable
        A tool has printed a line.
    """

    step: Callable[[str], None] = lambda name: None
    line: Callable[[str], None] = lambda text: None


def design(
    board: Board,
    *,
    mhz: float | None = None,
    lanes: int | None = None,
    vec: int | None = None,
    seed: int = 1,
) -> Design:
    """What goes onto a board by default, or with another clock or array.

    Raises
    ------
    ConfigError
        If the accelerator has no such array.
    """
    config = board.config
    if lanes is not None or vec is not None:
        values = asdict(config)
        values["lanes"], values["vec"] = lanes or config.lanes, vec or config.vec
        # The port as near to the default's as the array allows.
        narrowest, widest = 8 * values["vec"], 8 * values["lanes"] * min(values["vec"], 8)
        values["port_bits"] = min(max(config.port_bits, narrowest), widest)
        config = Config(**values)
    return Design(board, config, board.memory_bytes, board.mhz if mhz is None else mhz, board.baud, seed)


def build(wanted: Design, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Make the bitstream, and what belongs to it, in a folder; returns the report.

    Raises
    ------
    ToolchainError
        If a tool is missing or fails; its log is in the folder.
    FitError
        If the chip is too small.
    PllError
        If the board cannot make such a clock.
    """
    progress = progress or Progress()
    board, family = wanted.board, FAMILIES[wanted.board.family]
    versions = toolchain.versions(family.tools, EXTRA)
    setting = wanted.setting
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    progress.step("Amaranth")
    began = time.monotonic()
    source = wanted.source()
    (out / SOURCE).write_text(source)
    constraints = f"{board.name}.{SUFFIX[board.family]}"
    (out / constraints).write_text(board.constraints())
    seconds["amaranth"] = time.monotonic() - began

    def run(name: str, tool: Tool, options: list[str]) -> None:
        progress.step(name)
        began = time.monotonic()
        log = out / f"{tool.name}.log"
        toolchain.run(tool, options, out, extra=EXTRA, progress=progress.line, log=log)
        seconds[tool.name] = time.monotonic() - began

    run("synthesis", YOSYS, ["-p", family.script])
    needs = needed(json.loads((out / SYNTHESISED).read_text())["modules"][TOP], family)
    report = {
        "schema": SCHEMA,
        **described(wanted, setting),
        "tools": versions,
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "synthesis": needs,
        "fits": all(needs[name] <= board.has[name] for name in RESOURCES),
    }
    if not report["fits"]:
        _save(out, {**report, "seconds": seconds})
        over = ", ".join(
            f"{needs[name]} {name} of {board.has[name]}" for name in RESOURCES if needs[name] > board.has[name]
        )
        raise FitError(
            f"{board.name}: {wanted.config.lanes} lanes of {wanted.config.vec} products do not fit: {over}; "
            "take fewer (--lanes, --vec), or a larger board",
            report,
        )
    options = ["--json", SYNTHESISED, "--seed", str(wanted.seed), "--timing-allow-fail", "--report", REPORT]
    run("place and route", family.place, [*options, *family.place_options(board, constraints, float(setting.mhz))])
    bitstream = f"{board.name}.{family.suffix}"
    run("bitstream", family.pack, family.pack_options(board, bitstream))
    (out / SYNTHESISED).unlink()  # tens of megabytes, and made from what is there
    data = (out / bitstream).read_bytes()
    report |= routed(json.loads((out / REPORT).read_text()), board, family, setting)
    report |= {"bitstream": {"file": bitstream, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    report |= {"seconds": {name: round(value, 1) for name, value in seconds.items()}}
    _save(out, report)
    (out / "README.md").write_text(readme.text(board, report))
    return report


def _save(out: Path, report: Mapping[str, Any]) -> None:
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def described(wanted: Design, setting: Setting) -> dict[str, Any]:
    """Of a report: the design and its clock."""
    board = wanted.board
    config = asdict(wanted.config)
    del config["probe"]
    return {
        "board": board.name,
        "part": f"{board.part} {board.package} {board.speed}".strip(),
        "config": config,
        "config_hash": f"{wanted.config.hash:016x}",
        "memory_bytes": wanted.memory_bytes,
        "baud": wanted.baud,
        "seed": wanted.seed,
        "clock": {
            "reference_mhz": board.reference_mhz,
            "mhz": round(float(setting.mhz), 4),
            "vco_mhz": round(float(setting.vco_mhz), 4),
            "pfd_mhz": round(float(setting.pfd_mhz), 4),
            "pll": board.pll.primitive,
            **dict(setting.dividers),
        },
    }


def needed(module: Mapping[str, Any], family: Family) -> dict[str, int]:
    """What a synthesised module takes of each resource, at least."""
    counts = dict.fromkeys(RESOURCES, 0)
    for cell in module["cells"].values():
        for name in RESOURCES:
            counts[name] += family.before[name].get(cell["type"], 0)
    counts["lut"] += _alone(module["cells"].values(), family) if family.tables else 0
    return counts


def _alone(cells: Collection[Mapping[str, Any]], family: Family) -> int:
    """Flip-flops without a table of their own beside them: each takes the place of one."""
    tables = [cell for cell in cells if cell["type"] in family.tables]
    free = {bit for cell in tables for bit in cell["connections"][family.tables[cell["type"]]]}
    alone = 0
    for cell in cells:
        if family.before["ff"].get(cell["type"]):
            (source,) = cell["connections"]["D"]
            alone += source not in free
            free.discard(source)
    return alone


def routed(timing: Mapping[str, Any], board: Board, family: Family, setting: Setting) -> dict[str, Any]:
    """Of a report: what nextpnr says of a routed design.

    Raises
    ------
    BoardError
        If it names no clock.
    """
    # Other nets may count as clocks (the reference, within the PLL): ours is the slowest.
    if not timing["fmax"]:
        raise BoardError(f"{board.name}: nextpnr reports no clock")
    fmax = min(clock["achieved"] for clock in timing["fmax"].values())
    used = timing["utilization"]
    utilisation = {
        name: {
            "used": sum(used.get(kind, {"used": 0})["used"] * takes for kind, takes in family.after[name].items()),
            "of": board.has[name],
        }
        for name in RESOURCES
    }
    for kind, title in family.large.items():
        utilisation[title] = {"used": used[kind]["used"], "of": used[kind]["available"]}
    mhz = float(setting.mhz)
    return {
        "fmax_mhz": round(fmax, 2),
        "overclock_percent": round(100 * (mhz / fmax - 1), 1),
        "utilisation": utilisation,
        "critical_path": _critical(timing, fmax),
    }


def _critical(timing: Mapping[str, Any], fmax: float) -> dict[str, Any]:
    """The path that sets Fmax: where it begins and ends, its length in ns, and how many cells it passes."""
    longest: dict[str, Any] = {}
    for path in timing.get("critical_paths", ()):
        steps = path["path"]
        delay = sum(step["delay"] for step in steps)
        if path["from"].split(" ")[-1] != path["to"].split(" ")[-1] or delay <= longest.get("ns", 0):
            continue
        longest = {
            "from": steps[0]["from"]["cell"],
            "to": steps[-1]["to"]["cell"],
            "ns": round(delay, 2),
            "logic_ns": round(sum(step["delay"] for step in steps if step["type"] != "routing"), 2),
            "cells": sum(step["type"] == "logic" for step in steps),
        }
    return longest


def remove_old(out: Path) -> None:
    """Empty a folder that an earlier build filled; another folder is left alone."""
    if (out / SOURCE).exists():
        shutil.rmtree(out)
