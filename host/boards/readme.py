"""The page that lies beside a bitstream: what it is, how to load it, what is not known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hw.boards.board import Board


def text(board: Board, report: Mapping[str, Any]) -> str:
    """The page, for the report of a finished build."""
    file = report["bitstream"]["file"]
    config, clock = report["config"], report["clock"]
    lines = [
        f"# Redline for {board.title}",
        "",
        f"{config['lanes']} lanes of {config['vec']} products, {report['memory_bytes'] // 1024} KiB of device memory, "
        f"{clock['mhz']:g} MHz, serial link at {report['baud']:,} baud.",
        "",
        f"Place and route (seed {report['seed']}) gives {report['fmax_mhz']:g} MHz for the slow corner; "
        + overclocking(report),
        "",
        "Load it (until power is cut, or for good; one of):",
        "",
        *(f"    {command.format(file=file)}" for command in board.program),
        "",
        f"The serial link: {board.serial}.",
        "",
        "In Python:",
        "",
        f'    device = redline.device("serial", board="{board.name}"{_others(board, config)}, port="...")',
        "",
        f"Configuration hash {report['config_hash']}: the host refuses a board with another.",
        "",
        "No board was attached when this was made: the bitstream has not been run.",
        "",
        "`report.json` has the figures, the tools' versions and the source's hash; `timing.json` is nextpnr's report; "
        "the `.log` files are all that the tools printed.",
        "",
    ]
    return "\n".join(lines)


def _others(board: Board, config: Mapping[str, Any]) -> str:
    """Parameters of the accelerator that are not the board's own, as arguments."""
    own = asdict(board.config)
    return "".join(f", {name}={value!r}" for name, value in config.items() if value != own[name])


def overclocking(report: Mapping[str, Any]) -> str:
    """How the clock stands to Fmax, in a sentence."""
    percent = report["overclock_percent"]
    if percent > 0:
        return f"the clock is {percent:g} % above: **overclocked**, errors are to be expected."
    return f"the clock is {-percent:g} % below."
