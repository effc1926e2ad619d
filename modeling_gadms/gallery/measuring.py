"""What calibration and checks need: captions matched to rows, samples of vectors, and results judged true or false."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dataset_webperson import DataError

from ..rows import some_places
from .asking import Question
from .calibration import (
    HITS,
    Calibration,
    error_with_interval,
    fit_curve,
    fitted_apart,
    moments,
    standardise,
)
from .models import Encoder
from .rows import Rows, vector_array
from .searching import Found, unit

MOMENT_ROWS = 100_000  # rows that tell how a sentence scores on the gallery
_PART = 8192  # vectors in memory at a time


def sampled(values: list[Any], count: int, seed: int) -> list[Any]:
    """At most `count` of some values, in their order."""
    return [values[place] for place in some_places(len(values), count, seed)]


def sampled_vectors(rows: Rows, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Vectors of at most `count` rows, in parts `(rows, dimension)` of unit length, float64."""
    total = rows.count()
    places = some_places(total, count, seed)
    for first in range(0, len(places), _PART):
        yield unit(vector_array(rows.take(places[first : first + _PART], ["vector"])["vector"]))


def recall(answer: Callable[[Question], Found], queries: np.ndarray) -> float:
    """Mean share of the ten exact results that the ordinary search finds; 1 without queries.

    Args:
        answer (`Callable`): the search of a gallery.
        queries (`np.ndarray` of shape `(queries, dimension)`): what is asked.
    """
    shares = []
    for query in queries:
        right, found = (
            {row["id"] for row in answer(Question(query, HITS, exact=exact)).rows} for exact in (True, False)
        )
        shares.append(len(right & found) / max(len(right), 1))
    return float(np.mean(shares)) if shares else 1.0


def known_images(rows: Rows, pairs: Sequence[tuple[str, str]], same: str | None) -> list[tuple[str, set[str]]]:
    """`(caption, ids of the images it is true of)` of the captions whose image is in the gallery.

    A caption is true of every image that it is given for, and of those that share its image's value in column `same`.

    Raises:
        DataError: no such column, or no caption names an image of the gallery.
    """
    if same is not None and same not in rows.kinds:
        raise DataError(
            f"no column {same!r} that tells the same person, only {', '.join(sorted(rows.kinds)) or 'none'}"
        )
    found = rows.read(["id", "uri", *([same] if same else [])]).to_pylist()
    by_uri: dict[str, set[str]] = {}
    by_value: dict[Any, set[str]] = {}
    value_of: dict[str, Any] = {}
    for row in found:
        by_uri.setdefault(row["uri"], set()).add(row["id"])
        if same and row[same] is not None:
            by_value.setdefault(row[same], set()).add(row["id"])
            value_of[row["id"]] = row[same]
    true: dict[str, set[str]] = {}
    for uri, caption in pairs:
        for number in by_uri.get(uri, ()):
            true.setdefault(caption, set()).update({number}, by_value.get(value_of.get(number), ()))
    if not true:
        raise DataError(
            f"none of the {len(pairs):,} captions names an image of this gallery; names are those of its rows"
        )
    return list(true.items())


def calibrated(
    rows: Rows, answer: Callable[[Question], Found], encoder: Encoder, captions: list[tuple[str, set[str]]]
) -> tuple[Calibration, dict[str, float]]:
    """What is learned from captions, each with the ids that it is true of, and how good it is.

    Returns:
        the calibration, and `{"captions", "true_share", "error", "error_low", "error_high"}`.
    """
    mean, covariance = moments(sampled_vectors(rows, MOMENT_ROWS))
    z, is_true, groups = judged_results(answer, encoder, captions, mean, covariance)
    intercept, slope = fit_curve(z, is_true)
    error, low, high = error_with_interval(fitted_apart(z, is_true, groups), is_true, groups)
    facts = {
        "captions": len(np.unique(groups)),
        "true_share": float(is_true.mean()),
        "error": error,
        "error_low": low,
        "error_high": high,
    }
    return Calibration(mean, covariance, intercept, slope), facts


def judged_results(
    answer: Callable[[Question], Found],
    encoder: Encoder,
    captions: list[tuple[str, set[str]]],
    mean: np.ndarray,
    covariance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the ten best images of each caption: standardised cosine, whether the caption is true, number of the caption.

    Returns:
        three arrays `(pairs,)`: float64, bool, int64.
    """
    z, is_true, groups = [], [], []
    queries = unit(encoder.texts([caption for caption, _ in captions]))
    for number, ((_, ids), query) in enumerate(zip(captions, queries, strict=True)):
        found = answer(Question(query, HITS, exact=True))
        z.append(standardise(query, found.cosines, mean, covariance))
        is_true += [row["id"] in ids for row in found.rows]
        groups += [number] * len(found.rows)
    return np.concatenate(z), np.array(is_true, dtype=bool), np.array(groups)
