"""Intervals and p-values against enumeration, against loops in plain Python, and against known answers."""

import doctest
import itertools
import math
import random

import numpy as np
import pytest

from modeling_gadms.evaluation import significance
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference


def every_sign(differences):
    """The exact p-value: every way the signs can fall."""
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in every_way(len(differences))]
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)


def every_way(count):
    return list(itertools.product((-1, 1), repeat=count))


def resampled_quantiles(groups_of_values, resamples=4000):
    """Whole groups drawn with replacement, one at a time."""
    draw = random.Random(1)
    means = []
    for _ in range(resamples):
        drawn = [value for _ in groups_of_values for value in draw.choice(groups_of_values)]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


@pytest.mark.parametrize(
    "differences",
    [[0.3, -0.1, 0.2, 0.5, -0.2, 0.4, 0.1, 0.6], [1, 1, 0, 1, -1, 1, 1, 0, 1, 1], [0.1] * 3, [0.1, 0.2, -0.3], [2.0]],
)
def test_p_value_is_the_share_of_all_sign_patterns(differences):
    result = paired_difference(differences, np.zeros(len(differences)), num_resamples=40_000)
    assert result.p_value == pytest.approx(every_sign(differences), abs=0.012)
    assert result.mean == pytest.approx(sum(differences) / len(differences))


def test_p_value_of_groups_tosses_one_sign_a_group():
    groups = [4, 4, 4, 9, 9, 2, 7, 7]
    differences = [1, 1, 1, -1, 0, 1, 0.5, 0.5]
    sums = [sum(d for d, g in zip(differences, groups, strict=True) if g == group) for group in sorted(set(groups))]
    result = paired_difference(differences, [0] * 8, groups=groups, num_resamples=40_000)
    assert result.p_value == pytest.approx(every_sign(sums), abs=0.012)
    assert abs(every_sign(sums) - every_sign(differences)) > 0.03  # the groups make a difference here


def test_interval_is_that_of_drawing_queries_one_at_a_time():
    values = [random.Random(seed).random() for seed in range(30)]
    low, high = resampled_quantiles([[value] for value in values])
    result = bootstrap_interval(values)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.01)
    assert result.mean == pytest.approx(sum(values) / 30)


def test_groups_are_drawn_whole_and_widen_the_interval():
    groups = [g for g in range(12) for _ in range(g % 4 + 1)]
    values = [float(g % 3 == 0) for g in groups]
    by_group = [[v for v, g in zip(values, groups, strict=True) if g == group] for group in range(12)]
    low, high = resampled_quantiles(by_group)
    result, alone = bootstrap_interval(values, groups=groups), bootstrap_interval(values)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert result.high - result.low > 1.2 * (alone.high - alone.low)
    assert result.mean == alone.mean == pytest.approx(np.mean(values))


def test_interval_of_recall_is_the_binomial_one():
    hits = 100.0 * (np.arange(2000) % 10 < 7)
    result = bootstrap_interval(hits, num_resamples=4000)
    half = 1.96 * 100 * math.sqrt(0.7 * 0.3 / 2000)
    assert (result.low, result.high) == pytest.approx((70 - half, 70 + half), abs=0.15)
    narrow = bootstrap_interval(hits, num_resamples=4000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * half / 1.96, rel=0.1)


def test_pairing_finds_a_difference_that_separate_intervals_hide():
    hits = 100.0 * (np.arange(2000) % 10 < 7)
    better = hits.copy()
    better[np.flatnonzero(hits == 0)[:20]] = 100.0  # 1 point, on the very same queries
    result = paired_difference(better, hits)
    assert result.mean == pytest.approx(1.0)
    assert result.p_value < 0.001 and result.low > 0
    assert bootstrap_interval(hits).high > bootstrap_interval(better).low


def test_equally_good_models_show_no_difference():
    rng = np.random.default_rng(0)
    p_values = [
        paired_difference(*(rng.random((2, 200)) < 0.6), num_resamples=400, seed=seed).p_value for seed in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert paired_difference([1, 0, 1], [1, 0, 1]).p_value == 1


def test_rounding_of_floating_point_is_no_difference():
    values = 100.0 * np.linspace(0.1, 0.9, 200)
    rounded = np.nextafter(values, np.inf)  # the last bit, in favour of one side everywhere
    assert (rounded > values).all()
    for groups in (None, np.arange(200) // 4):
        result = paired_difference(rounded, values, groups=groups)
        assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert paired_difference(values + 1e-6, values).p_value < 0.001  # small, but no rounding


def test_seeds_and_portions_of_the_draws_are_reproducible(monkeypatch):
    values = np.arange(50.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    whole = bootstrap_interval(values, num_resamples=500)
    monkeypatch.setattr(significance, "MAX_DRAWS", 120)
    parts = bootstrap_interval(values, num_resamples=500)
    assert (whole.low, whole.high) == pytest.approx((parts.low, parts.high), abs=2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_interval([]), "at least one query"),
        (lambda: bootstrap_interval([[1.0]]), r"shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "1 of 2 `values` are NaN.*index 1"),
        (lambda: bootstrap_interval([1.0], groups=[1, 2]), "one group per query"),
        (lambda: bootstrap_interval([1.0], confidence=95), "between 0 and 1"),
        (lambda: bootstrap_interval([1.0], num_resamples=0), "at least 1"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "1 and 2 queries"),
        (lambda: paired_difference([1.0], [float("inf")]), "1 of 1 `b`"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(significance)
    assert result.attempted == 3 and not result.failed
