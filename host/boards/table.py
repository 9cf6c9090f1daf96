"""The committed table of what each board reached, with what it came from; printed as Markdown for docs/boards.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from host.boards.family import RESOURCES
from host.boards.flow import SCHEMA
from hw.boards.board import BoardError
from hw.boards.catalogue import BOARDS
from hw.files import ReadError, read_json

PATH = Path(__file__).parent / "table.json"
BEGIN, END = "<!-- printed by `redline bitstream --table` -->", "<!-- end of the table -->"

FIELDS: dict[str, type | tuple[type, ...]] = {
    "board": str,
    "part": str,
    "config": dict,
    "config_hash": str,
    "memory_bytes": int,
    "baud": int,
    "seed": int,
    "clock": dict,
    "tools": dict,
    "source_sha256": str,
    "synthesis": dict,
    "fits": bool,
}
"""Of every entry."""
ROUTED: dict[str, type | tuple[type, ...]] = {
    "fmax_mhz": (int, float),
    "overclock_percent": (int, float),
    "utilisation": dict,
    "critical_path": dict,
    "bitstream": dict,
    "seconds": dict,
}
"""Besides, of an entry that fits."""


class TableError(BoardError):
    """A file is no such table; the message says what is missing."""


def load(path: Path = PATH) -> dict[str, dict[str, Any]]:
    """Entries by board, in the catalogue's order.

    Raises
    ------
    TableError
        If the file is missing or not of this form.
    """
    try:
        held = read_json(path)
    except ReadError as error:
        raise TableError(f"{path} is no table of boards: {error}") from error
    if not isinstance(held, dict) or held.get("schema") != SCHEMA or not isinstance(held.get("boards"), dict):
        raise TableError(f"{path} is no table of boards of schema {SCHEMA}; make it anew: redline bitstream --record")
    for name, entry in held["boards"].items():
        if not isinstance(entry, dict):
            raise TableError(f"{name}: the table's entry is no object")
        check(name, entry)
    return {name: held["boards"][name] for name in BOARDS if name in held["boards"]}


def check(name: str, entry: Mapping[str, Any]) -> None:
    """Raise `TableError` unless an entry has all that one has."""
    if name not in BOARDS or entry.get("board") != name:
        raise TableError(f"{name}: the table has an entry of a board that is not known")
    for field, kind in {**FIELDS, **(ROUTED if entry.get("fits") else {})}.items():
        if not isinstance(entry.get(field), kind):
            raise TableError(f"{name}: the table's entry has no {field}, or none of the right kind")


def record(report: Mapping[str, Any], path: Path = PATH) -> None:
    """Put a report into the table, in place of the board's earlier one."""
    entries = load(path) if path.exists() else {}
    entry = {name: value for name, value in report.items() if name != "schema"}
    check(entry["board"], entry)
    entries[entry["board"]] = entry
    ordered = {name: entries[name] for name in BOARDS if name in entries}
    path.write_text(json.dumps({"schema": SCHEMA, "boards": ordered}, indent=2) + "\n")


def markdown(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, a row for each board."""
    lines = [
        "| board | array | buffers, memory | LUT | FF | multipliers | block RAM | Fmax | clock | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        config = entry["config"]
        kib = [f"{number / 1024:g}" for number in (config["feature_bytes"], config["weight_bytes"])]
        microcode = config.get("control") == "microcode"
        cells = [
            f"`{name}` ({entry['part'].split()[0]})",
            f"{config['lanes']} x {config['vec']}{' by microcode' if microcode else ''}",
            f"2 x {kib[0]}{'' if microcode else f' + {kib[1]}'}, {entry['memory_bytes'] // 1024} KiB",
        ]
        if entry["fits"]:
            used = entry["utilisation"]
            cells += [_share(used[resource]["used"], used[resource]["of"]) for resource in RESOURCES]
            cells[-1] += "".join(
                f"; {place['used']} of {place['of']} {kind}" for kind, place in used.items() if kind not in RESOURCES
            )
            cells += [
                f"{entry['fmax_mhz']:.1f} MHz",
                f"{entry['clock']['mhz']:g} MHz",
                f"{sum(entry['seconds'].values()) / 60:.0f}",
            ]
        else:
            cells += [_share(entry["synthesis"][resource], BOARDS[name].has[resource]) for resource in RESOURCES]
            cells += ["does not fit", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _share(used: int, of: int) -> str:
    return f"{used} of {of} ({100 * used / of:.0f} %)"


def of_page(page: str) -> str:
    """What a page has between the table's marks.

    Raises
    ------
    TableError
        If it has no place for the table.
    """
    if BEGIN not in page or END not in page:
        raise TableError("the page has no place for the table of boards")
    return page.split(BEGIN, 1)[1].split(END, 1)[0].strip() + "\n"
