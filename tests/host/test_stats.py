"""Intervals and tests against published and independently computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from host.stats import Clustered, Rate, difference, paired, planned_clusters, planned_trials


def test_wilson_interval_matches_newcombes_published_example() -> None:
    # Newcombe 1998 (single proportions), 81/263: 0.2553 to 0.3662.
    low, high = Rate(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 20), (1, 29), (15, 148), (20, 20), (1900, 2000)])
def test_wilson_interval_matches_scipy(successes: int, trials: int) -> None:
    wanted = scipy_stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert Rate(successes, trials).interval == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for successes in rng.binomial(200, 0.9, 2000):
        low, high = Rate(int(successes), 200).interval
        inside += low <= 0.9 <= high
    assert 0.93 <= inside / 2000 <= 0.97


def test_a_rate_without_trials_is_rejected() -> None:
    with pytest.raises(ValueError, match="trials >= 1, not 0/0"):
        Rate(0, 0)


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(1000):
        # right under both 75 %, only second 15 %, only first 5 %, neither 5 %: true difference 0.10
        cell = rng.choice(4, 300, p=[0.75, 0.15, 0.05, 0.05])
        low, high = paired((cell == 0) | (cell == 2), cell <= 1).interval
        inside += low <= 0.10 <= high
    assert 0.93 <= inside / 1000 <= 0.98


def test_mcnemar_counts_only_discordant_images() -> None:
    first = np.array([True] * 500 + [False] * 10)
    second = np.array([True] * 500 + [True] * 9 + [False])
    result = paired(first, second)
    assert (result.gained, result.lost) == (9, 0)
    assert result.p_value == pytest.approx(2 / 2**9)


def test_equal_treatments_do_not_differ() -> None:
    same = np.array([True, False, True])
    result = paired(same, same)
    assert result.p_value == 1.0
    assert result.interval[0] <= 0.0 <= result.interval[1]


def test_samples_of_different_length_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"one length, not \(2,\) and \(3,\)"):
        paired(np.ones(2, bool), np.ones(3, bool))


# -- clusters


def beta_binomial(rng: np.random.Generator, clusters: int, size: int, share: float, rho: float) -> np.ndarray:
    """Successes of clusters whose images have correlation rho."""
    scale = 1 / rho - 1
    return rng.binomial(size, rng.beta(share * scale, (1 - share) * scale, clusters))


@pytest.mark.parametrize(("share", "rho", "clusters"), [(0.3, 0.2, 60), (0.05, 0.5, 400), (0.9, 0.05, 100)])
def test_clustered_interval_covers_the_truth_as_often_as_it_says_and_wilsons_does_not(
    share: float, rho: float, clusters: int
) -> None:
    rng, size = np.random.default_rng(3), 16
    inside = naive = 0
    for _ in range(1000):
        successes = beta_binomial(rng, clusters, size, share, rho)
        low, high = Clustered.of(successes, np.full(clusters, size)).interval
        inside += low <= share <= high
        low, high = Rate(int(successes.sum()), clusters * size).interval
        naive += low <= share <= high
    assert 0.925 <= inside / 1000 <= 0.98
    assert naive < inside


def test_images_that_are_all_alike_count_once() -> None:
    alike = Clustered.of(np.array([8, 0, 0, 8, 0, 0, 0, 0] * 25), np.full(200, 8))
    low, high = alike.interval
    single_low, single_high = Rate(50, 200).interval
    assert alike.design_effect == pytest.approx(8, rel=0.02)
    assert (low, high) == pytest.approx((single_low, single_high), abs=2e-3)


def test_without_any_success_the_images_of_a_cluster_count_once() -> None:
    assert Clustered.of(np.zeros(50, int), np.full(50, 32)).interval == pytest.approx(Rate(0, 50).interval)
    assert Clustered.of(np.full(50, 32), np.full(50, 32)).interval == pytest.approx(Rate(50, 50).interval)


def test_clusters_of_one_image_give_wilsons_interval() -> None:
    flags = np.random.default_rng(4).random(500) < 0.2
    many = Clustered.of(flags.astype(int), np.ones(500, int))
    assert many.interval == pytest.approx(Rate.of(flags).interval, abs=1e-4)


@pytest.mark.parametrize(
    ("successes", "sizes"), [([], []), ([1], [1, 1]), ([2], [1]), ([-1], [1]), ([0], [0])], ids=str
)
def test_impossible_clusters_are_rejected(successes: list[int], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="cluster"):
        Clustered.of(np.array(successes, int), np.array(sizes, int))


def test_paired_clusters_cover_the_true_difference_and_seldom_cry_wolf() -> None:
    rng, size, clusters = np.random.default_rng(5), 10, 80
    inside = false_alarms = 0
    for _ in range(1000):
        base = rng.beta(2, 2, clusters)
        first = rng.binomial(size, base)
        second = rng.binomial(size, np.clip(base + 0.05, 0, 1))
        low, high = difference(first, second, np.full(clusters, size)).interval
        inside += low <= np.mean(np.clip(base + 0.05, 0, 1) - base) <= high
        false_alarms += difference(first, rng.binomial(size, base), np.full(clusters, size)).p_value < 0.05
    assert inside / 1000 >= 0.93
    assert false_alarms / 1000 <= 0.075


def test_paired_clusters_of_one_image_are_mcnemars() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.random(300) < 0.7, rng.random(300) < 0.8
    alone = paired(first, second)
    found = difference(first.astype(int), second.astype(int), np.ones(300, int))
    assert (found.value, found.interval, found.p_value) == (alone.difference, alone.interval, alone.p_value)


def test_treatments_that_never_differ_leave_open_what_the_clusters_cannot_tell() -> None:
    same = np.array([3, 0, 5])
    found = difference(same, same, np.full(3, 5))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.interval[1] == pytest.approx(Rate(0, 3).interval[1])


# -- before the run


def half_width(trials: int, share: float) -> float:
    """By scipy's root-free definition: both ends solve |p - share| = z sqrt(p (1 - p) / n)."""
    z = scipy_stats.norm.ppf(0.975)
    ends = np.roots([1 + z * z / trials, -2 * share - z * z / trials, share * share]).real
    return float(abs(ends[0] - ends[1]) / 2)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("wanted", [0.001, 0.01, 0.05, 0.2])
def test_the_planned_number_is_the_fewest_that_is_narrow_enough(share: float, wanted: float) -> None:
    n = planned_trials(wanted, share)
    assert half_width(n, share) <= wanted + 1e-12
    assert n == 1 or half_width(n - 1, share) > wanted - 1e-12


def test_the_planned_number_in_the_worst_case_is_the_textbooks() -> None:
    z = scipy_stats.norm.ppf(0.975)
    assert planned_trials(0.01) == int(np.ceil(z * z / (4 * 0.01**2) - z * z)) == 9600


def test_a_plan_of_clusters_lies_between_independent_images_and_images_all_alike() -> None:
    assert planned_clusters(0.01, 32, 0.0) == planned_trials(0.01) // 32
    assert planned_clusters(0.01, 32, 1.0) == planned_trials(0.01)
    assert planned_clusters(0.01, 32, 0.1) == int(np.ceil(planned_trials(0.01) * 4.1 / 32))


@pytest.mark.parametrize(("wanted", "share"), [(0, 0.5), (0.5, 0.5), (0.1, 1.5)])
def test_plans_that_make_no_sense_are_rejected(wanted: float, share: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        planned_trials(wanted, share)


# -- published and hand-computed values


def table(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a 2 x 2 table."""
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("counts", "difference", "interval"),
    [
        # Newcombe 1998 (paired proportions), method 10: no correction, since phi is negative.
        ((36, 2, 12, 0), 0.2, (0.0569, 0.3404)),
        # Altman et al. 2000 (Statistics with Confidence), table 6.2: phi is corrected for continuity.
        ((14, 0, 5, 22), 0.1220, (0.0115, 0.2265)),
        # Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness (Bentur et al. 2009).
        ((1, 7, 1, 12), -0.2857, (-0.5069, -0.0256)),
    ],
)
def test_paired_interval_matches_published_examples(
    counts: tuple[int, int, int, int], difference: float, interval: tuple[float, float]
) -> None:
    found = paired(*table(*counts))
    assert found.difference == pytest.approx(difference, abs=5e-5)
    assert found.interval == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("counts", [(36, 2, 12, 0), (14, 0, 5, 22), (59, 6, 16, 80), (3, 40, 1, 9)])
def test_exchanging_the_treatments_exchanges_the_ends(counts: tuple[int, int, int, int]) -> None:
    first, second = table(*counts)
    there, back = paired(first, second), paired(second, first)
    assert back.difference == pytest.approx(-there.difference)
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    assert (back.gained, back.lost, back.p_value) == (there.lost, there.gained, there.p_value)


def test_few_clusters_are_judged_by_students_t_with_one_degree_of_freedom_fewer() -> None:
    # By hand: share 1/4, residuals 1, -1, 0, variance of the share 3/2 * 2 / 12**2 = 1/48, that of 12 independent
    # images 3/16 / 12 = 1/64: design effect 4/3, 9 images. Textbook: t(0.975), 2 degrees: 4.30265; z: 1.95996.
    found = Clustered.of(np.array([2, 0, 1]), np.array([4, 4, 4]))
    assert found.design_effect == pytest.approx(4 / 3)
    assert found.effective_trials == pytest.approx(9 * (1.959964 / 4.302653) ** 2, rel=1e-5)


@pytest.mark.parametrize(("clusters", "student"), [(2, 12.706205), (3, 4.302653), (6, 2.570582), (31, 2.042272)])
def test_the_difference_of_clusters_uses_the_tables_t(clusters: int, student: float) -> None:
    sizes = np.full(clusters, 100)
    second = np.where(np.arange(clusters) % 2, 51, 50)
    found = difference(np.full(clusters, 50), second, sizes)
    change = second - 50
    spread = np.sqrt(clusters / (clusters - 1) * np.sum((change - change.mean()) ** 2)) / (100 * clusters)
    assert found.interval[1] - found.value == pytest.approx(student * spread, rel=1e-5)
