"""Where the multipliers go: each lane's beside each other, as a designer would place them.

nextpnr's placer scatters the DSP blocks of a lane over the whole chip, and the first level of its adder tree then is
slower than everything else (10 ns instead of 4).
"""

from __future__ import annotations

from typing import Any

from hw.errors import RedlineError
from sim.timing.netlist import MULTIPLIER

ROWS = (34, 10, 58)
"""LFE5U-85F: the rows with DSP blocks, from the middle."""
GROUPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
"""In each row, the columns where groups of four multipliers begin."""
SITES = (0, 1, 4, 5)
"""In each group, the multipliers' numbers, which are also their columns."""


class FloorplanError(RedlineError, ValueError):
    """The part has not enough multipliers for the array."""


def place_multipliers(top: dict[str, Any], lanes: int, vec: int) -> None:
    """Fix the place of every multiplier of a packed netlist, by lane, in place.

    Raises
    ------
    FloorplanError
        If they do not fit, whole lanes in a row.
    """
    groups = -(-vec // len(SITES))
    per_row = len(GROUPS) // groups
    if lanes > per_row * len(ROWS):
        raise FloorplanError(f"{lanes} lanes of {vec} products do not fit: {per_row * len(ROWS)} do")
    for lane in range(lanes):
        row, number = ROWS[lane // per_row], lane % per_row
        prefix = f"lane_{lane}."
        cells = sorted(
            name for name, cell in top["cells"].items() if cell["type"] == MULTIPLIER and name.startswith(prefix)
        )
        if len(cells) != vec:
            raise FloorplanError(f"lane {lane} has {len(cells)} multipliers, not {vec}")
        for index, name in enumerate(cells):
            site = SITES[index % len(SITES)]
            column = GROUPS[number * groups + index // len(SITES)] + site
            top["cells"][name]["attributes"]["BEL"] = f"X{column}/Y{row}/MULT18_{site}"
