"""Metric of text-to-person retrieval for `evaluate`: a thin wrapper around the `ranking.py` next to it."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .ranking import retrieval_metrics

_DESCRIPTION = """
Recall at 1, 5 and 10, mean average precision and mean inverse negative penalty of text-to-person retrieval, computed
exactly from embeddings: no similarity matrix is built, no row is sorted, ties follow one stated rule.
"""

_CITATION = """
@article{ye2022deep,
  title = {Deep Learning for Person Re-Identification: A Survey and Outlook},
  author = {Ye, Mang and Shen, Jianbing and Lin, Gaojie and Xiang, Tao and Shao, Ling and Hoi, Steven C. H.},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume = {44},
  number = {6},
  pages = {2872--2893},
  year = {2022}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (float, `(num_queries, dim)`): embeddings of the queries.
    references (int, `(num_queries,)`): person ids of the queries.
    gallery_embeds (float, `(num_gallery, dim)`): embeddings of the gallery.
    gallery_ids (int, `(num_gallery,)`): person ids of the gallery.
    exclude, ties, on_missing, block_size, normalize: see `rank_queries` in `ranking.py`.

Returns:
    `R@1`, `R@5`, `R@10`, `mAP`, `mINP` in 0-100; with `on_missing="skip"` also `skipped`, a number of queries.

Examples:

    >>> metric = evaluate.load("./modeling_gadms/person_retrieval")
    >>> metric.compute(
    ...     predictions=[[1.0, 0.0], [0.0, 1.0]],
    ...     references=[7, 9],
    ...     gallery_embeds=[[0.8, 0.6], [0.0, 1.0], [1.0, 0.1]],
    ...     gallery_ids=[7, 9, 8],
    ... )
    {'R@1': 50.0, 'R@5': 100.0, 'R@10': 100.0, 'mAP': 75.0, 'mINP': 75.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PersonRetrieval(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Only the queries pass through Arrow; float64 holds every narrower type as it is.
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )
        # Arrow arrays, not lists of Python numbers. Set afterwards: MetricInfo takes a format for flat features only.
        info.format = "arrow"
        return info

    def _compute(
        self,
        predictions: Any,
        references: Any,
        *,
        gallery_embeds: Any,
        gallery_ids: Any,
        **options: Any,
    ) -> dict[str, float]:
        lengths = np.unique(predictions.combine_chunks().value_lengths())
        if len(lengths) != 1:
            raise ValueError(f"`predictions` are vectors of {len(lengths)} lengths, {lengths[0]} to {lengths[-1]}")
        query_embeds = predictions.combine_chunks().flatten().to_numpy().reshape(len(predictions), lengths[0])
        if hasattr(gallery_embeds, "cpu"):  # the queries come back from Arrow, the gallery joins them
            gallery_embeds = gallery_embeds.cpu()
        return retrieval_metrics(query_embeds, gallery_embeds, references.to_numpy(), gallery_ids, **options)
