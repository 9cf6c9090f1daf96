"""Statistics that every reported figure carries: Wilson intervals, clusters, paired comparisons, sample sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.integer]


def wilson(share: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share of `trials`, which need not be a whole number (Wilson 1927, equation 3)."""
    z = quantile(confidence)
    n, p = trials, share
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 where they should be, rather than a rounding error beside.
    return (0.0 if p == 0 else max(0.0, centre - half)), (1.0 if p == 1 else min(1.0, centre + half))


def quantile(confidence: float) -> float:
    """Standard normal deviation within which a share of `confidence` lies."""
    return float(stats.norm.ppf(0.5 + confidence / 2))


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
        return wilson(self.value, self.trials, self.confidence)

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


# ---- clusters: several images under one fault


@dataclass(frozen=True)
class Clustered:
    """A share of images, where images of one cluster (one fault) resemble each other.

    The interval is Wilson's with the effective number of images, `trials / design_effect` (Kish 1965), corrected for
    the few degrees of freedom of the variance between clusters (after Korn and Graubard 1998). The design effect is
    never taken below 1. Where no image or every image is a success, the variance between clusters says nothing, and the
    images of a cluster count as one: the interval is that of as many trials as there are clusters.

    Attributes
    ----------
    successes, trials : int
        Images.
    clusters : int
    design_effect : float
        Variance of the share over that of as many independent images, at least 1.
    confidence : float
    """

    successes: int
    trials: int
    clusters: int
    design_effect: float
    confidence: float = 0.95

    @classmethod
    def of(cls, successes: Counts, sizes: Counts, confidence: float = 0.95) -> Clustered:
        """The share over clusters, from successes and images of each, integer arrays of shape (clusters,)."""
        _check_clusters(successes, sizes)
        total, hits, clusters = int(sizes.sum()), int(successes.sum()), len(sizes)
        share = hits / total
        effect = total / clusters
        if 0 < hits < total and clusters > 1:
            variance = _ratio_variance(successes - share * sizes, total)
            effect = max(1.0, variance / (share * (1 - share) / total))
        return cls(hits, total, clusters, effect, confidence)

    @property
    def value(self) -> float:
        """The observed share."""
        return self.successes / self.trials

    @property
    def effective_trials(self) -> float:
        """Independent images that would tell as much."""
        n = self.trials / self.design_effect
        if 0 < self.successes < self.trials and self.clusters > 1 and self.trials > self.clusters:
            student = float(stats.t.ppf(0.5 + self.confidence / 2, self.clusters - 1))
            n *= (quantile(self.confidence) / student) ** 2
        return n

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return wilson(self.value, self.effective_trials, self.confidence)

    @property
    def half_width(self) -> float:
        """Half the interval's length."""
        low, high = self.interval
        return (high - low) / 2

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


@dataclass(frozen=True)
class Difference:
    """Two treatments under the same faults on the same images.

    Attributes
    ----------
    value : float
        Share of successes, second minus first.
    interval : tuple of float
    p_value : float
        Of no difference, two-sided.
    clusters : int
    """

    value: float
    interval: tuple[float, float]
    p_value: float
    clusters: int


def difference(first: Counts, second: Counts, sizes: Counts, confidence: float = 0.95) -> Difference:
    """Compare two treatments, cluster by cluster.

    The test is Durkalski's extension of McNemar's to clusters (Durkalski et al. 2003); the interval Student's on the
    differences of clusters. Where no cluster shows a difference, the interval is what a share of 0 of as many clusters
    leaves open (Wilson), either way. Clusters of one image give the tests of `paired`.

    Parameters
    ----------
    first, second : integer arrays, shape (clusters,)
        Successes of each cluster.
    sizes : integer array, shape (clusters,)
        Images of each cluster.
    """
    _check_clusters(first, sizes)
    _check_clusters(second, sizes)
    change = np.asarray(second, np.int64) - np.asarray(first, np.int64)
    clusters, total = len(sizes), int(sizes.sum())
    if (sizes == 1).all():
        alone = paired(first.astype(bool), second.astype(bool), confidence)
        return Difference(alone.difference, alone.interval, alone.p_value, clusters)
    value = float(change.sum() / total)
    if not change.any():
        _, high = wilson(0.0, clusters, confidence)
        return Difference(value, (-high, high), 1.0, clusters)
    shares = change / sizes
    p_value = float(stats.chi2.sf(shares.sum() ** 2 / (shares**2).sum(), 1))
    if clusters == 1:
        return Difference(value, (-1.0, 1.0), p_value, clusters)
    half = float(stats.t.ppf(0.5 + confidence / 2, clusters - 1)) * math.sqrt(
        _ratio_variance(change - value * sizes, total)
    )
    return Difference(value, (max(-1.0, value - half), min(1.0, value + half)), p_value, clusters)


def _ratio_variance(residuals: npt.NDArray[np.floating], total: int) -> float:
    """Variance of a ratio estimator from its residuals by cluster (Cochran 1977)."""
    clusters = len(residuals)
    return float(clusters / (clusters - 1) * np.sum(residuals**2) / total**2)


def _check_clusters(successes: Counts, sizes: Counts) -> None:
    if successes.shape != sizes.shape or successes.ndim != 1 or not len(sizes):
        raise ValueError(
            f"clusters must be two flat arrays of one length, not empty: not {successes.shape} and {sizes.shape}"
        )
    if (sizes < 1).any() or (successes < 0).any() or (successes > sizes).any():
        raise ValueError("a cluster needs at least one image, and from no to all of its images as successes")


# ---- before the run


def planned_trials(half_width: float, share: float = 0.5, confidence: float = 0.95) -> int:
    """Fewest independent trials whose Wilson interval is no wider than wanted (closed form: Piegorsch 2004).

    Parameters
    ----------
    half_width : float
        Half the interval's length, more than 0 and less than 0.5.
    share : float
        The share that is expected; 0.5 is the worst case.
    """
    if not 0 < half_width < 0.5:
        raise ValueError(f"a half-width must be more than 0 and less than 0.5, not {half_width}")
    if not 0 <= share <= 1:
        raise ValueError(f"an expected share must be from 0 to 1, not {share}")
    z, pq, h = quantile(confidence), share * (1 - share), half_width
    # half_width(n) = h, squared, is a quadratic in n.
    n = z * z * (pq - 2 * h * h + math.sqrt(pq * pq - 4 * h * h * pq + h * h)) / (2 * h * h)
    return max(1, math.ceil(n - 1e-9))


def planned_clusters(
    half_width: float, images: int, correlation: float, share: float = 0.5, confidence: float = 0.95
) -> int:
    """Fewest clusters of `images` each for a wanted half-width (Kish 1965: design effect 1 + (images - 1) correlation).

    `correlation` is that of two images of one cluster: 1 if a fault does the same to all, 0 if it makes no difference.
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"a correlation within clusters must be from 0 to 1, not {correlation}")
    effect = 1 + (images - 1) * correlation
    return math.ceil(planned_trials(half_width, share, confidence) * effect / images - 1e-9)
