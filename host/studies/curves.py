"""Right answers by treatment, training seed and clock: what curves and their tipping points are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from host.studies.results import Row
from host.studies.tipping import Right

LOOP = ("original", "TWA", "TWA+CLP")
"""Treatments retrained at every clock, or not at all."""
BASELINES = ("retrained fault-free", "noise", "dropout")
"""Treatments retrained once, without meeting an error of the clock."""


def curves(rows: Sequence[Row]) -> dict[str, Right]:
    """Right answers of each treatment, shape (seeds, clocks, images)."""
    curves = {}
    for treatment in (LOOP[0], "CLP", *LOOP[1:], *BASELINES):
        seeds = sorted({row.seed for row in rows if row.treatment == treatment}, key=lambda seed: seed or 0)
        if seeds:
            curves[treatment] = np.stack(
                [
                    np.stack(
                        [
                            row.evaluation.right
                            for row in sorted(rows, key=lambda row: row.level or 0)
                            if row.treatment == treatment and row.seed == seed
                        ]
                    )
                    for seed in seeds
                ]
            )
    return curves
