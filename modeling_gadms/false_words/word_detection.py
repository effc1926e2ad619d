"""How well a score tells false words from true ones: AUROC, average precision, F1, calibration, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "METRICS",
    "best_f1",
    "calibration_error",
    "f1_at_share",
    "false_word_metrics",
    "flat_scores",
    "group_resamples",
    "ranking_quality",
    "word_scores",
]

METRICS = ("AUROC", "AP", "F1", "F1_at_share", "ECE")
CHUNK = 20  # resamples counted at a time
BINS = 15  # of equal width, over probabilities from 0 to 1


def false_word_metrics(
    predictions: Sequence[Sequence[float]] | Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    *,
    groups: Sequence[int] | None = None,
    share: float | None = None,
    num_resamples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure over all words, with 95 % intervals, and by attribute.

    Args:
        predictions: one item for each caption: a score for each of its reference words, in their order, or a list of
            `{"start", "end", "score"}`, scores of character spans (see [`word_scores`]). A high score calls a word
            false.
        references: one item for each caption, the list of its words: `{"start", "end", "attribute", "is_false"}`,
            characters with the end excluded, as in the columns `caption1_words` of a WebPerson that is drawn.
        groups (integers of shape `(num_captions,)`, *optional*): the person of each caption; intervals draw whole
            persons. By default every caption is a group of its own.
        share (`float`, *optional*): share of the words called false in `F1_at_share`, in (0, 1). By default that of
            the false words.
        num_resamples (`int`): of the groups, for the intervals.
        seed (`int`): of the resamples.

    Returns:
        The keys of `METRICS`, in 0-1, each with `<key>_low` and `<key>_high`; `ECE` is None unless all scores are
        probabilities. `threshold` is the score at and above which `F1` is reached; `num_words`, `num_false` and
        `share` are those used. `by_attribute` has for each attribute `AUROC`, `AP`, `num_words` and `num_false`; the
        first two are None where all its words are true, or all false.

    Raises:
        ValueError: lengths that differ, what is no score or not finite, scores mixed with spans, no false or no true
            word, a share outside (0, 1), no resample; names the caption.
    """
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, or there are no intervals; got {num_resamples}")
    scores = flat_scores(predictions, references)
    words = [word for one in references for word in one]
    is_false = np.array([bool(word["is_false"]) for word in words], dtype=bool)
    attributes = np.array([str(word["attribute"]) for word in words])
    if not is_false.any() or is_false.all():
        raise ValueError(f"{is_false.sum()} of {len(is_false)} words are false: both false and true ones are needed")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"`share` is a share of the words, between 0 and 1, not {share}")
    captions = range(len(references)) if groups is None else groups
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} groups but {len(references)} captions")
    group = np.repeat(np.asarray(captions), [len(one) for one in references])

    used = float(is_false.mean()) if share is None else share
    found = _all_metrics(scores, is_false, used, np.ones((1, len(scores))))
    threshold = best_f1(scores, is_false)[1]
    weights = group_resamples(group, num_resamples, seed)
    parts = [
        _all_metrics(scores, is_false, used, weights[first : first + CHUNK].astype(np.float64))
        for first in range(0, num_resamples, CHUNK)
    ]
    resampled = {key: np.concatenate([part[key] for part in parts]) for key in METRICS}
    result: dict[str, Any] = {}
    for key in METRICS:
        for name, value in (
            (key, found[key][0]),
            (f"{key}_low", np.nanquantile(resampled[key], 0.025) if not np.isnan(found[key][0]) else np.nan),
            (f"{key}_high", np.nanquantile(resampled[key], 0.975) if not np.isnan(found[key][0]) else np.nan),
        ):
            result[name] = _number(value)
    result |= {"threshold": threshold, "share": used, "num_words": len(words), "num_false": int(is_false.sum())}
    result["by_attribute"] = {}
    for attribute in np.unique(attributes):
        chosen = attributes == attribute
        auroc, precision = ranking_quality(scores[chosen], is_false[chosen])
        result["by_attribute"][str(attribute)] = {
            "AUROC": _number(float(auroc)),
            "AP": _number(float(precision)),
            "num_words": int(chosen.sum()),
            "num_false": int(is_false[chosen].sum()),
        }
    return result


def flat_scores(
    predictions: Sequence[Sequence[float]] | Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
) -> np.ndarray:
    """The score of each word, caption after caption, `(num_words,)` float64; see [`false_word_metrics`].

    Raises:
        ValueError: lengths that differ, what is no score or not finite, scores mixed with spans; names the caption.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references: one of each per caption")
    for number, found in enumerate(predictions):
        _refuse_no_scores(found, number)
    given = [one["score"] if isinstance(one, Mapping) else one for found in predictions for one in found]
    lowest = 0.0 if all(0 <= score <= 1 for score in given) else min(given) - 1.0
    return np.array(
        [
            score
            for number, (found, words) in enumerate(zip(predictions, references, strict=True))
            for score in _scores_of(found, words, number, lowest)
        ],
        dtype=np.float64,
    )


def word_scores(spans: Sequence[Mapping[str, Any]], words: Sequence[Mapping[str, Any]], lowest: float) -> list[float]:
    """For each word the highest score of the spans that share a character with it; `lowest` where none does.

    >>> spans = [{"start": 0, "end": 7, "score": 0.2}, {"start": 8, "end": 12, "score": 0.9}]
    >>> word_scores(spans, [{"start": 2, "end": 5}, {"start": 6, "end": 9}, {"start": 12, "end": 15}], lowest=0.0)
    [0.2, 0.9, 0.0]
    """
    return [
        max(
            (float(span["score"]) for span in spans if span["start"] < word["end"] and span["end"] > word["start"]),
            default=lowest,
        )
        for word in words
    ]


def ranking_quality(
    suspicion: np.ndarray, is_false: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of `suspicion` for false words; words of equal suspicion are taken together.

    Args:
        suspicion, is_false (`np.ndarray` of shape `(N,)`): a number, and whether it is high with reason.
        weights (`np.ndarray` of shape `(R, N)`, *optional*): how often each word counts, in each of `R` resamples.

    Returns:
        Two `np.ndarray` of shape `(R,)` in [0, 1], NaN where all words are alike; two numbers without `weights`.

    >>> ranking_quality(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    (0.875, 0.8333333333333333)
    """
    if not is_false.any() or is_false.all():
        return (np.nan, np.nan) if weights is None else (np.full(len(weights), np.nan),) * 2
    counts = np.ones((1, len(suspicion))) if weights is None else weights
    false_so_far, true_so_far, false, true = _counts_by_threshold(suspicion, is_false, counts)
    with np.errstate(invalid="ignore"):  # a resample may draw words of one kind only, or none of the first ones
        num_false, num_true = false_so_far[:, -1], true_so_far[:, -1]
        auroc = (true * (false_so_far - false / 2)).sum(axis=1) / (num_false * num_true)
        precision = np.nan_to_num(false_so_far / (false_so_far + true_so_far))
        average_precision = (false * precision).sum(axis=1) / num_false
    return (auroc, average_precision) if weights is not None else (float(auroc[0]), float(average_precision[0]))


def best_f1(suspicion: np.ndarray, is_false: np.ndarray) -> tuple[float, float]:
    """The highest F1 of any threshold, and that threshold: words at or above it are called false.

    >>> best_f1(np.array([0.9, 0.8, 0.5, 0.1]), np.array([True, False, True, False]))
    (0.8, 0.5)
    """
    f1 = _f1_by_threshold(suspicion, is_false, np.ones((1, len(suspicion))))[0]
    best = int(f1.argmax())
    return float(f1[best]), float(np.unique(suspicion)[::-1][best])


def f1_at_share(suspicion: np.ndarray, is_false: np.ndarray, share: float, weights: np.ndarray | None = None) -> Any:
    """F1 when the most suspicious `share` of the words is called false; words of equal suspicion fall together.

    The number of words called is the one nearest to the share that a threshold can give. `weights` as in
    [`ranking_quality`], with an array of shape `(R,)` as the result.

    >>> f1_at_share(np.array([0.9, 0.8, 0.5, 0.1]), np.array([True, False, True, False]), 0.5)
    0.5
    """
    counts = np.ones((1, len(suspicion))) if weights is None else weights
    false_so_far, true_so_far, _, _ = _counts_by_threshold(suspicion, is_false, counts)
    called = false_so_far + true_so_far
    chosen = np.abs(called - share * called[:, -1:]).argmin(axis=1)[:, None]
    f1 = np.take_along_axis(_f1(false_so_far, true_so_far), chosen, axis=1)[:, 0]
    return f1 if weights is not None else float(f1[0])


def calibration_error(
    probability: np.ndarray, is_false: np.ndarray, weights: np.ndarray | None = None, num_bins: int = BINS
) -> Any:
    """Expected calibration error: mean difference, over bins, of the mean probability and the share of false words.

    NaN unless all are probabilities. Bins have equal width and count by their words. `weights` as in
    [`ranking_quality`], with an array of shape `(R,)` as the result.

    >>> calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, False, False])).__round__(6)
    0.1
    """
    counts = np.ones((1, len(probability))) if weights is None else weights
    if probability.min() < 0 or probability.max() > 1:
        error = np.full(len(counts), np.nan)
    else:
        bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
        inside = np.eye(num_bins)[bins]  # (N, bins)
        surplus = (counts * (probability - is_false)) @ inside
        error = np.abs(surplus).sum(axis=1) / counts.sum(axis=1)
    return error if weights is not None else float(error[0])


def group_resamples(groups: np.ndarray, num_resamples: int = 300, seed: int = 0) -> np.ndarray:
    """How often each word counts when whole groups are drawn again: `(N,)` group numbers -> `(R, N)` uint16."""
    which = np.unique(groups, return_inverse=True)[1]
    num_groups = which.max() + 1
    drawn = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    return drawn[:, which].astype(np.uint16)


def _all_metrics(scores: np.ndarray, is_false: np.ndarray, share: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    auroc, precision = ranking_quality(scores, is_false, weights)
    return {
        "AUROC": auroc,
        "AP": precision,
        "F1": _f1_by_threshold(scores, is_false, weights).max(axis=1),
        "F1_at_share": f1_at_share(scores, is_false, share, weights),
        "ECE": calibration_error(scores, is_false, weights),
    }


def _counts_by_threshold(suspicion: np.ndarray, is_false: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """False and true words at or above each distinct score, from the highest, and those at it; each `(R, scores)`."""
    order = np.argsort(-suspicion, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(suspicion[order]) != 0])
    counts = weights[:, order]
    false = np.add.reduceat(counts * is_false[order], starts, axis=1)
    true = np.add.reduceat(counts * ~is_false[order], starts, axis=1)
    return false.cumsum(axis=1), true.cumsum(axis=1), false, true


def _f1(false_so_far: np.ndarray, true_so_far: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(2 * false_so_far / (false_so_far + true_so_far + false_so_far[:, -1:]))


def _f1_by_threshold(suspicion: np.ndarray, is_false: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _f1(*_counts_by_threshold(suspicion, is_false, weights)[:2])


def _refuse_no_scores(found: Any, number: int) -> None:
    """Raise `ValueError` unless a caption has a list of numbers, or one of spans."""
    if not isinstance(found, Collection) or isinstance(found, str | Mapping):
        raise ValueError(f"caption {number}: {found!r} is no list; give a score for each word, or a list of spans")
    if len({isinstance(one, Mapping) for one in found}) > 1:
        raise ValueError(f"caption {number}: has both scores and spans; give the one or the other")
    for one in found:
        values: list[Any] = [one.get(key) for key in ("start", "end", "score")] if isinstance(one, Mapping) else [one]
        try:
            list(map(float, values))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"caption {number}: {one!r} is no score; give a number or start, end and score"
            ) from error


def _scores_of(found: Any, words: Sequence[Mapping[str, Any]], number: int, lowest: float) -> list[float]:
    """The scores of a caption's words, checked."""
    spans = len(found) > 0 and isinstance(found[0], Mapping)
    if spans or not len(found):  # no span at all: every word is beyond suspicion
        scores = word_scores(found, words, lowest)
    else:
        scores = [float(score) for score in found]
    if len(scores) != len(words):
        raise ValueError(f"caption {number}: {len(scores)} scores for {len(words)} words; one for each is needed")
    if not np.isfinite(scores).all():
        raise ValueError(f"caption {number}: a score is NaN or infinite")
    return scores


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
