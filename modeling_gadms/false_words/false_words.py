"""Metric of finding false words for `evaluate`: a thin wrapper around the `word_detection.py` next to it."""

from typing import Any

import datasets
import evaluate

from .word_detection import false_word_metrics

_DESCRIPTION = """
How well scores tell the false words of captions from the true ones: AUROC, average precision, F1 and calibration, with
intervals over whole persons, and by attribute.
"""

_CITATION = ""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one item for each caption: a score for each of its reference words, in their order, or a list of
        `{"start", "end", "score"}`, scores of character spans. A high score calls a word false. A metric that is
        loaded once takes the one or the other.
    references: one item for each caption: the list of its words, `{"start", "end", "attribute", "is_false"}`.
    groups, share, num_resamples, seed: see `false_word_metrics` in `word_detection.py`.

Returns:
    `AUROC`, `AP`, `F1`, `F1_at_share` and `ECE` in 0-1, each with `_low` and `_high`; `threshold`, `share`,
    `num_words`, `num_false`; `by_attribute`, the `AUROC` and `AP` of each.

Examples:

    >>> metric = evaluate.load("./modeling_gadms/false_words")
    >>> words = [
    ...     {"start": 2, "end": 5, "attribute": "top.color", "is_false": True},
    ...     {"start": 6, "end": 10, "attribute": "top.garment", "is_false": False},
    ... ]
    >>> found = metric.compute(predictions=[[0.9, 0.2], [0.4, 0.6]], references=[words, words])
    >>> found["AUROC"], found["AP"], found["num_false"]
    (0.75, 0.8333333333333333, 2)
"""

_WORD = {
    "start": datasets.Value("int32"),
    "end": datasets.Value("int32"),
    "attribute": datasets.Value("string"),
    "is_false": datasets.Value("bool"),
}
_SPAN = {"start": datasets.Value("int32"), "end": datasets.Value("int32"), "score": datasets.Value("float64")}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class FalseWords(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # two ways to predict: a score for each word, or for spans of characters
        features = [
            datasets.Features({"predictions": datasets.List(kind), "references": datasets.List(_WORD)})
            for kind in (datasets.Value("float64"), _SPAN)
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_KWARGS_DESCRIPTION, features=features
        )

    def _compute(self, predictions: list, references: list, **options: Any) -> dict[str, Any]:
        return false_word_metrics(predictions, references, **options)
