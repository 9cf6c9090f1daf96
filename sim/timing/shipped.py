"""The delay tables that come with Redline."""

from __future__ import annotations

from pathlib import Path

from hw.delays import DelayError, Table

FOLDER = Path(__file__).parent / "tables"
SEEDS = (1,)
"""Placements of the default lanes (16 x 8)."""


def path(lanes: int = 16, vec: int = 8, seed: int = 1) -> Path:
    """Where the table of a placement is, or would be."""
    return FOLDER / f"ecp5-{lanes}x{vec}-seed{seed}.json"


def load(lanes: int = 16, vec: int = 8, seed: int = 1) -> Table:
    """The table of a placement.

    Raises
    ------
    DelayError
        If none comes with Redline.
    """
    file = path(lanes, vec, seed)
    if not file.exists():
        there = ", ".join(sorted(other.stem for other in FOLDER.glob("*.json"))) or "none"
        raise DelayError(
            f"no delay table of {lanes}x{vec}, seed {seed}, comes with Redline (there are: {there}); make it: "
            f"redline timing build --lanes {lanes} --vec {vec} --seed {seed}"
        )
    return Table.load(file)
