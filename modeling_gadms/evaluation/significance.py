"""Intervals and p-values of retrieval results, from the scores of single queries.

Queries about one person share their matches, so their scores are correlated: pass person ids as `groups`, and whole
persons are resampled. Without them the intervals are too narrow.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Difference", "Interval", "Spread", "bootstrap_interval", "paired_difference", "spread_of_runs"]

MAX_DRAWS = 1 << 22  # random numbers held at a time
# 97.5 % quantiles of Student's t by degrees of freedom
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
STUDENT |= {11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093}
ROUNDING = 1e-9  # smaller differences come from floating point, not from the models


@dataclass(frozen=True)
class Interval:
    """A mean over queries and its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of `a - b` over queries, its confidence interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Spread:
    """One value of each run: their mean, standard deviation, and the mean's 95 % interval over runs."""

    by_run: list[float]
    mean: float
    sd: float
    low: float
    high: float


def spread_of_runs(values: Sequence[float]) -> Spread:
    """How far runs lie apart, by Student's t: what other seeds would give, on the same queries.

    Raises:
        ValueError: there are fewer than two runs, or more than twenty.

    >>> spread_of_runs([50.0, 54.0])
    Spread(by_run=[50.0, 54.0], mean=52.0, sd=2.8284271247461903, low=26.588, high=77.412)
    """
    if not 2 <= len(values) <= len(STUDENT) + 1:
        raise ValueError(f"an interval over runs takes 2 to {len(STUDENT) + 1} of them, not {len(values)}")
    mean, sd = statistics.mean(values), statistics.stdev(values)
    half = STUDENT[len(values) - 1] * sd / len(values) ** 0.5
    return Spread(list(values), mean, sd, mean - half, mean + half)


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean over queries.

    Args:
        values (`(num_queries,)`): score of each query, such as `100 * (first_match_rank <= 1)` for `R@1`.
        groups (`(num_queries,)`, *optional*): queries with equal values are drawn together; pass person ids.
        confidence (`float`): confidence level, between 0 and 1.
        num_resamples (`int`): number of resamples.
        seed (`int`): seed of the draws; equal seeds give equal intervals.

    Raises:
        ValueError: no values, NaN (queries that were skipped), lengths that differ, `confidence` out of range.

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13.

    >>> bootstrap_interval([100, 100, 0, 100, 0, 100, 100, 100], seed=0)
    Interval(mean=75.0, low=37.5, high=100.0)
    """
    sums, sizes = _group(_check_values(values, "values"), groups)
    low, high = _bootstrap(sums, sizes, confidence, num_resamples, seed)
    return Interval(float(sums.sum() / sizes.sum()), low, high)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compares two models on the same queries.

    The interval is a bootstrap of the differences. The p-value is that of the paired permutation test: if the models
    were equally good, the sign of each difference would be a coin toss, so it is the share of random signs that give a
    mean at least as far from zero. It is never 0: with 10,000 draws it is at least 1 / 10,001. Differences below 1e-9
    count as none: the same ranking summed in another order can differ by that much, always in favour of one side.

    Args:
        a, b (`(num_queries,)`): score of each query with either model, in the same order.
        groups, confidence, num_resamples, seed: as in [`bootstrap_interval`]; each group gets one sign.

    Raises:
        ValueError: as [`bootstrap_interval`].

    Source: Good, *Permutation, Parametric and Bootstrap Tests of Hypotheses*, 2005, chapter 3.

    >>> paired_difference([1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0], seed=0)
    Difference(mean=0.875, low=0.625, high=1.0, p_value=0.015898410158984102)
    """
    a, b = _check_values(a, "a"), _check_values(b, "b")
    if len(a) != len(b):
        raise ValueError(f"the models were given {len(a)} and {len(b)} queries; a paired test needs the same ones")
    differences = np.where(np.abs(a - b) < ROUNDING, 0.0, a - b)
    sums, sizes = _group(differences, groups)
    low, high = _bootstrap(sums, sizes, confidence, num_resamples, seed)
    observed = abs(sums.sum())
    # Sums of the same numbers in another order differ in their last bits: equal ones must count as equal.
    tolerance = 1e-9 * np.abs(sums).sum()
    rng = np.random.default_rng(seed)
    sums = sums[sums != 0]  # the sign of zero changes nothing
    extreme = 0
    for count in _portions(num_resamples, max(len(sums), 1)):
        signs = rng.integers(0, 2, size=(count, len(sums)), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ sums) >= observed - tolerance))
    return Difference(float(differences.mean()), low, high, (1 + extreme) / (1 + num_resamples))


def _bootstrap(
    sums: np.ndarray, sizes: np.ndarray, confidence: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is a probability between 0 and 1, such as 0.95, not {confidence}")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` is at least 1, not {num_resamples}")
    rng = np.random.default_rng(seed)
    means = []
    for count in _portions(num_resamples, len(sums)):
        drawn = rng.integers(0, len(sums), size=(count, len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _portions(total: int, width: int) -> Iterator[int]:
    size = max(1, MAX_DRAWS // width)
    for start in range(0, total, size):
        yield min(size, total - start)


def _group(values: np.ndarray, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values per group; by default each value is a group of its own."""
    if groups is None:
        return values, np.ones(len(values))
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"`groups` has shape {groups.shape}; one group per query is needed: {values.shape}")
    which = np.unique(groups, return_inverse=True)[1]
    return np.bincount(which, weights=values), np.bincount(which).astype(np.float64)


def _check_values(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`{name}` has shape {values.shape}; one number per query is needed, and at least one query")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} `{name}` are NaN or infinite, the first at index {bad[0]}: leave out the "
            "queries that were skipped"
        )
    return values
