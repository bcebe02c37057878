"""Intervals, tests and their corrections: closed forms, counting by hand, scipy and statsmodels."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from textbed.runs import significance
from textbed.runs.significance import bootstrap, holm, mcnemar, over_documents, over_groups, over_pairs


def test_interval_by_hand() -> None:
    # mean 3, standard deviation sqrt(2.5), and t of 4 degrees at 97.5 % is 2.776445
    low, high = significance.interval([1, 2, 3, 4, 5]) or (0, 0)
    reach = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert (low, high) == pytest.approx((3 - reach, 3 + reach))
    assert significance.interval([2.0, 2.0]) == (2, 2)
    assert significance.interval([2.0]) is None


FIRST, SECOND = [0.82, 0.85, 0.81, 0.84], [0.80, 0.81, 0.82, 0.80]


def test_pairs_against_every_change_of_signs() -> None:
    differences = [a - b for a, b in zip(FIRST, SECOND, strict=True)]
    mean = statistics.fmean(differences)
    means = [
        statistics.fmean(sign * one for sign, one in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    found = over_pairs(FIRST, SECOND)
    assert found.difference == pytest.approx(mean)
    assert found.p == pytest.approx(sum(abs(one) >= abs(mean) - 1e-12 for one in means) / 16) == 0.25
    assert found.least_p == 2 / 16
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)))
    assert found.effect == pytest.approx(mean / statistics.stdev(differences))
    assert (found.repeats, found.paired) == (4, True)


def test_groups_against_every_division() -> None:
    both = [*FIRST, *SECOND[:3]]
    mean = statistics.fmean(FIRST) - statistics.fmean(SECOND[:3])
    means = [
        statistics.fmean(both[i] for i in chosen)
        - statistics.fmean(both[i] for i in range(7) if i not in chosen)
        for chosen in itertools.combinations(range(7), 4)
    ]
    assert len(means) == 35
    tail = min(sum(one >= mean - 1e-12 for one in means), sum(one <= mean + 1e-12 for one in means))
    found = over_groups(FIRST, SECOND[:3])
    assert found.difference == pytest.approx(mean)
    assert found.p == pytest.approx(2 * tail / 35)
    assert found.least_p == 2 / 35
    welch = stats.ttest_ind(FIRST, SECOND[:3], equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(welch))
    pooled = math.sqrt((3 * statistics.variance(FIRST) + 2 * statistics.variance(SECOND[:3])) / 5)
    assert found.effect == pytest.approx(mean / pooled)
    assert (found.repeats, found.paired) == (3, False)


def test_too_few_to_say_anything() -> None:
    one = over_pairs([0.9], [0.8])
    assert one.difference == pytest.approx(0.1)
    assert (one.interval, one.p, one.least_p, one.effect, one.needed) == (None,) * 5
    apart = over_groups([0.9], [0.8, 0.7])
    assert apart.difference == pytest.approx(0.15)
    assert (apart.interval, apart.p, apart.least_p, apart.effect, apart.needed) == (None,) * 5
    # without any spread there is nothing to measure a difference by
    alike = over_pairs([0.9, 0.9], [0.8, 0.8])
    assert alike.interval == pytest.approx((0.1, 0.1))
    assert (alike.p, alike.effect, alike.needed) == (0.5, None, None)
    same = over_groups([0.5, 0.5], [0.5, 0.5])
    assert (same.difference, same.interval, same.p, same.effect) == (0, (0, 0), 1, None)


def test_least_p_is_reached_and_not_undercut() -> None:
    for count in (2, 5, 6):
        far = over_pairs([1 + i / 100 for i in range(count)], [0.0] * count)
        assert far.p == far.least_p == 2 / 2**count
    drawn = over_pairs([1 + i / 100 for i in range(20)], [0.0] * 20)
    assert drawn.least_p == 2 / 10_000
    assert drawn.p == pytest.approx(drawn.least_p)


@pytest.mark.parametrize("effect", [0.3, 0.8, 2.0, -0.8])
@pytest.mark.parametrize("paired", [True, False])
def test_repeats_needed_by_the_noncentral_t(effect: float, paired: bool) -> None:
    def power(count: int) -> float:
        freedom = count - 1 if paired else 2 * count - 2
        shift = abs(effect) * math.sqrt(count if paired else count / 2)
        bound = stats.t.ppf(0.975, freedom)
        return float(stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift))

    needed = significance.repeats_needed(effect, paired=paired)
    assert needed is not None
    assert power(needed) >= 0.8 > power(needed - 1)


def test_repeats_that_nobody_makes() -> None:
    assert significance.repeats_needed(50.0, paired=True) == 2
    assert significance.repeats_needed(0.001, paired=True) is None
    assert significance.repeats_needed(0.0, paired=True) is None
    assert significance.repeats_needed(None, paired=False) is None


@pytest.mark.parametrize(("first", "second"), [(10, 2), (3, 3), (0, 1), (7, 0), (40, 25)])
def test_mcnemar_is_a_binomial(first: int, second: int) -> None:
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(first, first + second, 0.5).pvalue)
    total, fewer = first + second, min(first, second)
    tail = sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_without_disagreement() -> None:
    assert mcnemar(0, 0) == 1.0


def test_documents() -> None:
    first = np.array([1] * 60 + [1] * 12 + [0] * 4 + [0] * 24)
    second = np.array([1] * 60 + [0] * 12 + [1] * 4 + [0] * 24)
    found = over_documents(first, second)
    assert (found.documents, found.only_first, found.only_second) == (100, 12, 4)
    assert found.difference == pytest.approx(0.08)
    assert found.mcnemar == pytest.approx(stats.binomtest(4, 16, 0.5).pvalue)
    # of means over several runs there is no such table
    half = over_documents(first - 0.5 * (first > second), second)
    assert half.difference == pytest.approx(0.02)
    assert (half.only_first, half.only_second, half.mcnemar) == (None, None, None)


def test_bootstrap_is_that_of_drawing_documents() -> None:
    random = np.random.default_rng(3)
    differences = random.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.75, 0.15])
    low, high, p = bootstrap(differences)
    plain = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
        batch=500,
    ).confidence_interval
    assert (low, high) == pytest.approx((plain.low, plain.high), abs=0.003)
    # nearly normal: the standard error of the mean says the same
    error = differences.std() / 20
    assert (low, high) == pytest.approx(differences.mean() + np.array([-1.96, 1.96]) * error, abs=0.004)
    assert p == pytest.approx(2 * stats.norm.sf(abs(differences.mean()) / error), abs=0.02)
    assert bootstrap(differences) == (low, high, p)  # the same every time
    assert bootstrap(np.zeros(10)) == (0, 0, 1)
    assert bootstrap(np.ones(10))[2] == 1 / 10_000


def test_holm_by_hand() -> None:
    # in order 0.01 0.02 0.03 0.04, times 4 3 2 1, never less than one before
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([None]) == [None]
    assert holm([]) == []
