"""Figures of finding false words, against loops over pairs, thresholds and bins."""

import random

import numpy as np
import pytest

from modeling_gadms.false_words.word_detection import (
    METRICS,
    best_f1,
    calibration_error,
    f1_at_share,
    false_word_metrics,
    group_resamples,
    ranking_quality,
)


def pairwise_auroc(suspicion, is_false):
    pairs = [
        (a, b)
        for a, x in zip(suspicion, is_false, strict=True)
        if x
        for b, y in zip(suspicion, is_false, strict=True)
        if not y
    ]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def stepwise_average_precision(suspicion, is_false):
    """Recall gained at each threshold, from the highest, times the precision there."""
    total = 0.0
    for threshold in set(suspicion):
        gained = sum(x for s, x in zip(suspicion, is_false, strict=True) if s == threshold)
        above = [x for s, x in zip(suspicion, is_false, strict=True) if s >= threshold]
        total += gained / sum(is_false) * sum(above) / len(above)
    return total


def f1_above(suspicion, is_false, threshold):
    called = [s >= threshold for s in suspicion]
    hits = sum(c and x for c, x in zip(called, is_false, strict=True))
    return 2 * hits / (sum(called) + sum(is_false))


def error_by_bins(probability, is_false, num_bins=15):
    total = 0.0
    for number in range(num_bins):
        inside = [
            (p, x)
            for p, x in zip(probability, is_false, strict=True)
            if number == min(int(p * num_bins), num_bins - 1)
        ]
        if inside:
            mean, share = sum(p for p, _ in inside) / len(inside), sum(x for _, x in inside) / len(inside)
            total += len(inside) / len(probability) * abs(mean - share)
    return total


def some_words(count=60, seed=0):
    draw = random.Random(seed)
    suspicion = np.array([draw.randint(0, 12) / 12 for _ in range(count)])  # many ties
    return suspicion, np.array([draw.random() < 0.2 + 0.4 * value for value in suspicion])


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_that_of_loops_over_pairs_thresholds_and_bins(seed):
    suspicion, is_false = some_words(seed=seed)
    auroc, precision = ranking_quality(suspicion, is_false)
    assert auroc == pytest.approx(pairwise_auroc(suspicion, is_false), abs=1e-12)
    assert precision == pytest.approx(stepwise_average_precision(suspicion, is_false), abs=1e-12)

    by_threshold = {threshold: f1_above(suspicion, is_false, threshold) for threshold in sorted(set(suspicion))}
    found, threshold = best_f1(suspicion, is_false)
    assert found == pytest.approx(max(by_threshold.values())) == pytest.approx(by_threshold[threshold])

    called = {threshold: sum(suspicion >= threshold) for threshold in by_threshold}
    nearest = min(called, key=lambda threshold: abs(called[threshold] - 0.3 * 60))
    assert f1_at_share(suspicion, is_false, 0.3) == pytest.approx(by_threshold[nearest])
    assert calibration_error(suspicion, is_false) == pytest.approx(error_by_bins(suspicion, is_false), abs=1e-12)


def test_scores_that_are_all_equal_are_chance():
    is_false = np.array([True, False, False, True, False])
    assert ranking_quality(np.zeros(5), is_false) == (0.5, 0.4)


def test_words_of_one_kind_alone_have_no_quality():
    assert np.isnan(ranking_quality(np.arange(3.0), np.array([True, True, True]))).all()


def test_a_weight_counts_a_word_that_many_times():
    suspicion, is_false = some_words()
    captions = np.arange(60) // 6
    weights = group_resamples(captions, num_resamples=4, seed=1).astype(float)
    quality, shared = ranking_quality(suspicion, is_false, weights), f1_at_share(suspicion, is_false, 0.3, weights)
    error = calibration_error(suspicion, is_false, weights)
    for number, row in enumerate(weights.astype(int)):
        assert row.sum() == 60 and all(len(set(row[captions == caption])) == 1 for caption in range(10))
        drawn = np.repeat(suspicion, row), np.repeat(is_false, row)
        assert quality[0][number] == pytest.approx(pairwise_auroc(*drawn), abs=1e-9)
        assert quality[1][number] == pytest.approx(stepwise_average_precision(*drawn), abs=1e-9)
        assert shared[number] == pytest.approx(f1_at_share(*drawn, 0.3), abs=1e-9)
        assert error[number] == pytest.approx(error_by_bins(*drawn), abs=1e-9)


def as_captions(suspicion, is_false, length=6):
    """The words as captions of `length` words each, four characters a word."""
    references = [
        [
            {"start": 4 * n, "end": 4 * n + 3, "attribute": "color" if n % 2 else "kind", "is_false": bool(false)}
            for n, false in enumerate(is_false[first : first + length])
        ]
        for first in range(0, len(is_false), length)
    ]
    return [list(suspicion[first : first + length]) for first in range(0, len(suspicion), length)], references


def test_scores_of_words_and_of_their_spans_give_the_same_figures():
    predictions, references = as_captions(*some_words())
    spans = [
        [{"start": 4 * n + 1, "end": 4 * n + 2, "score": score} for n, score in enumerate(one)] for one in predictions
    ]
    assert false_word_metrics(predictions, references) == false_word_metrics(spans, references)


def test_a_word_has_the_highest_score_of_its_spans_and_one_without_a_span_is_beyond_suspicion():
    _, references = as_captions(np.zeros(6), np.array([True, False, True, False, False, False]))
    spans = [
        {"start": 0, "end": 2, "score": -2.0},
        {"start": 2, "end": 3, "score": 1.0},
        {"start": 8, "end": 9, "score": -7.0},
    ]
    found = false_word_metrics([spans], references, num_resamples=2)
    assert (found["AUROC"], found["threshold"], found["ECE"]) == (1.0, -7.0, None)
    probabilities = [[{"start": 0, "end": 3, "score": 0.5}, {"start": 8, "end": 9, "score": 0.0}]]
    assert false_word_metrics(probabilities, references, num_resamples=2)["AUROC"] == (4 + 4 / 2) / 8


def test_intervals_draw_whole_persons_and_hold_the_figure():
    suspicion, is_false = some_words(600)
    predictions, references = as_captions(suspicion, is_false)
    found = false_word_metrics(predictions, references, groups=[number // 5 for number in range(100)])
    for key in METRICS:
        assert found[f"{key}_low"] < found[key] < found[f"{key}_high"] or key in ("F1", "ECE")
    # one person alone leaves nothing to draw
    alone = false_word_metrics(predictions, references, groups=[7] * 100, num_resamples=3)
    for key in METRICS:
        assert alone[f"{key}_low"] == alone[f"{key}_high"] == pytest.approx(alone[key], abs=1e-12)


def test_figures_by_attribute_are_those_of_its_words_alone():
    predictions, references = as_captions(*some_words())
    chosen = np.arange(60) % 6 % 2 == 1
    suspicion, is_false = (values[chosen] for values in some_words())
    found = false_word_metrics(predictions, references, num_resamples=2)["by_attribute"]["color"]
    assert found["AUROC"] == pytest.approx(pairwise_auroc(suspicion, is_false))
    assert (found["num_words"], found["num_false"]) == (30, is_false.sum())


WORD = {"start": 0, "end": 3, "attribute": "color", "is_false": True}
SPAN = {"start": 0, "end": 3, "score": 0.5}


@pytest.mark.parametrize(
    ("predictions", "references", "options", "words"),
    [
        ([[0.5]], [[WORD], [WORD]], {}, "1 predictions but 2 references"),
        ([[0.5], [0.5, 0.1]], [[WORD], [WORD]], {}, "caption 1: 2 scores for 1 words"),
        ([[0.5], [float("nan")]], [[WORD], [WORD]], {}, "caption 1: a score is NaN"),
        ([[0.5], [None]], [[WORD], [WORD]], {}, "caption 1: None is no score; give a number or start"),
        ([[0.5], [[0.5]]], [[WORD], [WORD]], {}, r"caption 1: \[0.5\] is no score"),
        ([[0.5], [{"start": 0, "end": 3}]], [[WORD], [WORD]], {}, "caption 1: .* is no score"),
        ([0.5, 0.1], [[WORD], [WORD]], {}, "caption 0: 0.5 is no list; give a score for each word"),
        ([[0.5], {"start": 0, "end": 3, "score": 1}], [[WORD], [WORD]], {}, "caption 1: .* is no list"),
        ([[0.5], [SPAN, 0.3]], [[WORD], [WORD]], {}, "caption 1: has both scores and spans"),
        ([[0.5, 0.1]], [[WORD, WORD | {"is_false": False}]], {"num_resamples": 0}, "at least 1, .* got 0"),
        ([[0.5], [0.5]], [[WORD], [WORD]], {}, "2 of 2 words are false"),
        ([[0.5, 0.1]], [[WORD, WORD | {"is_false": False}]], {"share": 1.0}, "between 0 and 1"),
        ([[0.5, 0.1]], [[WORD, WORD | {"is_false": False}]], {"groups": [1, 2]}, "2 groups but 1 captions"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(predictions, references, options, words):
    with pytest.raises(ValueError, match=words):
        false_word_metrics(predictions, references, **options)
