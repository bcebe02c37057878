"""Is a difference real? Over repeats (seeds, folds) and over documents, which are two questions.

Repeats ask whether another seed would show the difference again; documents, whether other documents would.
All work on plain arrays. scipy and statsmodels are imported where they are used: together they take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999
POWER = 0.8
MOST_REPEATS = 10_000
"""From so many repeats on their number is not said: nobody will make them."""


@dataclass(frozen=True)
class OverRepeats:
    """How one group of runs differs from another, over seeds and folds."""

    difference: float
    """Mean of the first less that of the second."""
    interval: tuple[float, float] | None
    """95 % interval of the difference by Student's t (of pairs, else Welch's); None of too few runs."""
    p: float | None
    """Two-sided p-value of a permutation test: of the signs of the pairs, else of who is in which group."""
    least_p: float | None
    """The least p-value that so few repeats can give at all."""
    effect: float | None
    """Cohen's d: the difference in standard deviations, of the pairs' differences where there are pairs."""
    needed: int | None
    """Repeats of each with which a t-test at 5 % would see such a difference four times in five."""
    repeats: int
    """Pairs; else the runs of the smaller group."""
    paired: bool


@dataclass(frozen=True)
class OverDocuments:
    """How often one is right and the other is not, on the same documents."""

    documents: int
    difference: float
    """Share of right answers of the first less that of the second."""
    interval: tuple[float, float]
    """95 % interval of a paired bootstrap over documents (percentiles)."""
    p: float
    """Two-sided p-value of that bootstrap."""
    only_first: int | None
    """Documents that the first alone gets right; None where each is a mean over several runs."""
    only_second: int | None
    mcnemar: float | None
    """p-value of McNemar's exact test; None as above."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean by Student's t; None of fewer than two values."""
    from scipy import stats

    count = len(values)
    if count < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return mean - reach, mean + reach


def over_pairs(first: Sequence[float], second: Sequence[float]) -> OverRepeats:
    """Compare runs that come in pairs: the same seed and fold in both groups, in the same order."""
    from scipy import stats

    differences = np.asarray(first, float) - np.asarray(second, float)
    count, mean = len(differences), float(np.mean(differences))
    p = None
    if count > 1:
        p = float(
            stats.permutation_test(
                (np.asarray(first, float), np.asarray(second, float)),
                lambda a, b, axis: np.mean(a - b, axis=axis),
                permutation_type="samples",
                vectorized=True,
                n_resamples=RESAMPLES,
                rng=np.random.default_rng(0),
            ).pvalue
        )
    spread = float(np.std(differences, ddof=1)) if count > 1 else 0.0
    effect = _ratio(mean, spread)
    return OverRepeats(
        mean,
        interval(differences.tolist()),
        p,
        _least_p(2.0**count) if count > 1 else None,
        effect,
        repeats_needed(effect, paired=True),
        count,
        paired=True,
    )


def over_groups(first: Sequence[float], second: Sequence[float]) -> OverRepeats:
    """Compare runs that share no seed or fold."""
    from scipy import stats

    a, b = np.asarray(first, float), np.asarray(second, float)
    mean, fewest = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    p = bounds = effect = least = None
    if fewest > 1:
        p = float(
            stats.permutation_test(
                (a, b),
                lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
                permutation_type="independent",
                vectorized=True,
                n_resamples=RESAMPLES,
                rng=np.random.default_rng(0),
            ).pvalue
        )
        least = _least_p(math.comb(len(a) + len(b), len(a)))
        freedom = len(a) + len(b) - 2
        pooled = math.sqrt(((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / freedom)
        effect = _ratio(mean, pooled)
        if pooled:
            between = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
            bounds = float(between.low), float(between.high)
        else:
            bounds = mean, mean
    return OverRepeats(
        mean, bounds, p, least, effect, repeats_needed(effect, paired=False), fewest, paired=False
    )


def _least_p(arrangements: float) -> float:
    # from so many on they are drawn, and the one observed counts as drawn too
    return min(1.0, 2 / min(arrangements, RESAMPLES + 1))


def _ratio(mean: float, spread: float) -> float | None:
    # a spread of rounding errors is none
    return mean / spread if spread > 1e-12 * max(abs(mean), 1e-3) else None


def repeats_needed(effect: float | None, *, paired: bool) -> int | None:
    """Pairs, or runs of each group, with which a t-test at 5 % sees an effect with 80 % power.

    None where there is no spread, no difference, or more than ``MOST_REPEATS`` are needed.
    """
    if not effect:
        return None
    from statsmodels.stats.power import TTestIndPower, TTestPower

    test = TTestPower() if paired else TTestIndPower()

    def enough(count: int) -> bool:
        # it gives NaN instead of 1 for the largest effects
        return not test.power(abs(effect), count, 1 - CONFIDENCE) < POWER

    # solve_power's search for a root fails on large effects, whose answer is two or three
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_REPEATS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def over_documents(first: np.ndarray, second: np.ndarray) -> OverDocuments:
    """Compare what two did with the same documents.

    Args:
        first: (documents,) 1 where it is right and 0 where not; between them where it is a mean over runs.
        second: the same of the other.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    low, high, p = bootstrap(differences)
    plain = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    only = (int((differences > 0).sum()), int((differences < 0).sum())) if plain else None
    return OverDocuments(
        len(differences),
        float(differences.mean()),
        (low, high),
        p,
        only[0] if only else None,
        only[1] if only else None,
        mcnemar(*only) if only else None,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact p-value of McNemar 1947 (doi:10.1007/BF02295996): of as many answers that one alone got right."""
    if only_first + only_second == 0:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar as test

    return float(test([[0, only_first], [only_second, 0]], exact=True).pvalue)


def bootstrap(
    differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """95 % interval of the mean of the differences of paired documents, and the p-value of there being none.

    Efron and Tibshirani 1993 (doi:10.1007/978-1-4899-4541-9). Which documents are drawn matters only by the
    differences they have, and these are few (three, for two runs). So instead of documents the number of
    each difference is drawn, which has the same distribution and takes milliseconds for any number of
    documents, where drawing 25,000 of them 9,999 times takes seconds.
    """
    values, counts = np.unique(np.round(differences, 9), return_counts=True)
    total, mean = len(differences), float(np.mean(differences))
    random = np.random.default_rng(seed)
    block = max(1, (1 << 22) // len(values))
    means = np.concatenate(
        [
            random.multinomial(total, counts / total, min(block, resamples - done)) @ values / total
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    beyond = int((np.abs(means - mean) >= abs(mean) - 1e-9).sum())
    return float(low), float(high), (beyond + 1) / (resamples + 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values for being wrong in any of several tests, Holm 1979 (jstor.org/stable/4615733); None stays."""
    there = [p for p in p_values if p is not None]
    if not there:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests

    corrected = iter(multipletests(there, method="holm")[1].tolist())
    return [None if p is None else next(corrected) for p in p_values]
