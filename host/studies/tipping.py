"""Where a curve of accuracy over clock tips over, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Right = npt.NDArray[np.bool_]
"""Whether each image was right: shape (seeds, clocks, images)."""
Gain = tuple[float, float, float]
"""How much higher a clock is than another, minus 1, and the ends of its interval."""


@dataclass(frozen=True)
class Tip:
    """The clock at which accuracy has fallen below a level.

    Attributes
    ----------
    mhz : float
        Linear interpolation between the measured clocks; the highest measured clock where accuracy never falls.
    low, high : float
        95 % interval (percentile bootstrap over test images and training seeds).
    censored : bool
        Accuracy did not fall within the measured clocks: `mhz` is a lower bound.
    """

    mhz: float
    low: float
    high: float
    censored: bool

    def __str__(self) -> str:
        if self.censored:
            return f">= {self.mhz:.1f} MHz"
        return f"{self.mhz:.1f} MHz [{self.low:.1f}, {self.high:.1f}]"


def crossing(clocks: npt.NDArray[np.float64], accuracy: npt.NDArray[np.float64], level: float) -> float:
    """The clock at which a curve first falls below `level`, linearly interpolated; infinity where it does not.

    Parameters
    ----------
    clocks : float array, shape (K,), ascending
    accuracy : float array, shape (K,)
    level : float
    """
    below = np.flatnonzero(accuracy < level)
    if not len(below):
        return float("inf")
    at = int(below[0])
    if at == 0:
        return float(clocks[0])
    fallen = (accuracy[at - 1] - level) / (accuracy[at - 1] - accuracy[at])
    return float(clocks[at - 1] + fallen * (clocks[at] - clocks[at - 1]))


def tips(
    clocks: Sequence[float],
    curves: dict[str, Right],
    clean: npt.NDArray[np.bool_],
    *,
    drop: float = 0.01,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Tip], dict[str, Gain]]:
    """The clock at which each curve has lost `drop`, and how much higher it is than the first curve's.

    All curves are of the same test images: a resample draws images once for all of them (paired), and seeds for each.

    Parameters
    ----------
    clocks : sequence of float
        MHz, ascending.
    curves : dict of bool array, shape (seeds, len(clocks), images)
        By treatment; the first is what gains are relative to.
    clean : bool array, shape (images,)
        Whether the fault-free network is right: the level is its accuracy minus `drop`.
    drop : float
        Share of images, 0.01 for one point.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict of Tip, and dict of (gain, low, high)
        The gain is the ratio of clocks, minus 1. A curve that does not fall counts as its highest clock.
    """
    axis = np.asarray(clocks, np.float64)
    images = len(clean)
    generator = np.random.default_rng(seed)
    top = float(axis[-1])

    def once(drawn: npt.NDArray[np.int64] | None) -> dict[str, float]:
        level = float(clean.mean() if drawn is None else clean[drawn].mean()) - drop
        found = {}
        for name, right in curves.items():
            if drawn is None:
                mean = right.mean((0, 2))
            else:
                seeds = generator.integers(len(right), size=len(right))
                mean = right[seeds][:, :, drawn].mean((0, 2))
            found[name] = crossing(axis, mean, level)
        return found

    point = once(None)
    drawn = [once(generator.integers(images, size=images)) for _ in range(resamples)]
    first = next(iter(curves))

    def interval(values: list[float]) -> tuple[float, float]:
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    def within(value: float) -> float:
        return min(value, top)

    tipped, gains = {}, {}
    for name in curves:
        tipped[name] = Tip(within(point[name]), *interval([within(d[name]) for d in drawn]), np.isinf(point[name]))
        ratios = [within(d[name]) / within(d[first]) - 1 for d in drawn]
        gains[name] = (within(point[name]) / within(point[first]) - 1, *interval(ratios))
    return tipped, gains
