"""Statistics that every reported figure carries: Wilson intervals and paired comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """A share of successes with its Wilson score interval (Wilson 1927, equation 3).

    Attributes
    ----------
    successes, trials : int
    confidence : float
        Two-sided confidence of the interval.
    """

    successes: int
    trials: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.trials < 1 or not 0 <= self.successes <= self.trials:
            raise ValueError(
                f"a rate needs 0 <= successes <= trials and trials >= 1, not {self.successes}/{self.trials}"
            )

    @property
    def value(self) -> float:
        """The observed share."""
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the Wilson interval."""
        z = float(stats.norm.ppf(0.5 + self.confidence / 2))
        n, p = self.trials, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, float(centre - half)), min(1.0, float(centre + half))

    @classmethod
    def of(cls, flags: Flags, confidence: float = 0.95) -> Rate:
        """The rate of True in a boolean array."""
        return cls(int(np.count_nonzero(flags)), len(flags), confidence)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


@dataclass(frozen=True)
class Paired:
    """Two treatments of the same images, compared image by image.

    Attributes
    ----------
    gained : int
        Images that only the second treatment gets right.
    lost : int
        Images that only the first gets right.
    trials : int
    p_value : float
        Exact McNemar test (binomial on the discordant pairs, two-sided; McNemar 1947).
    difference : float
        Share of right answers, second minus first.
    interval : tuple of float
        95 % interval of the difference for paired proportions (Newcombe 1998, method 10).
    """

    gained: int
    lost: int
    trials: int
    p_value: float
    difference: float
    interval: tuple[float, float]


def paired(first: Flags, second: Flags, confidence: float = 0.95) -> Paired:
    """Compare two treatments of the same images under the same faults.

    Parameters
    ----------
    first, second : bool array, shape (N,)
        Whether image i was right under each treatment.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"paired samples must be two flat arrays of one length, not {first.shape} and {second.shape}")
    gained = int(np.count_nonzero(~first & second))
    lost = int(np.count_nonzero(first & ~second))
    both = int(np.count_nonzero(first & second))
    neither = len(first) - gained - lost - both
    discordant = gained + lost
    p_value = float(stats.binomtest(gained, discordant).pvalue) if discordant else 1.0
    a, b = Rate.of(first, confidence), Rate.of(second, confidence)
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    difference = b.value - a.value
    # Newcombe's correlation term; zero when a margin is empty.
    margins = float(a.successes) * (a.trials - a.successes) * b.successes * (b.trials - b.successes)
    phi = 0.0
    if margins > 0:
        numerator = float(both * neither - gained * lost)
        if numerator > 0:
            numerator = max(numerator - len(first) / 2, 0.0)
        phi = float(numerator / np.sqrt(margins))
    down_b, up_b, down_a, up_a = b.value - low_b, high_b - b.value, a.value - low_a, high_a - a.value
    below = np.sqrt(max(0.0, down_b**2 - 2 * phi * down_b * up_a + up_a**2))
    above = np.sqrt(max(0.0, up_b**2 - 2 * phi * up_b * down_a + down_a**2))
    interval = (max(-1.0, float(difference - below)), min(1.0, float(difference + above)))
    return Paired(gained, lost, len(first), p_value, difference, interval)
