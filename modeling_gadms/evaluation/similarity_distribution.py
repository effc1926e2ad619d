"""mSD, the mean Similarity Distribution of UFineBench (CVPR 2024, arXiv 2312.03441): how far, not only where.

Two models that rank alike differ in it if one holds matches further above the rest. With `s = (1 + cosine) / 2`, and
the gallery in descending order of `s`, a query has

    SD = mean over matches k of (sum of s of the matches down to k) / (sum of s of all down to k)
         * (1 - exp(-(mean s of the matches) / (mean s of the others)))

The first factor is average precision with weights `s` in the place of counts; the second is 0.63 where matches and
others are equally similar. As `s` enters by value, figures compare only between models whose scores are cosines.

Taken from the calculator in the repository of UFineBench, with one difference: it looks up matches in the sorted row
and `s` in the unsorted one, so that the sums and means are those of other items. Beside a mAP of 64.92 that would give
about 0.63 * 64.92 = 41, where the authors report 50.20; here everything is sorted.
"""

import numpy as np
import torch

GRID = 2.0**26  # dot products of multiples of 1 / GRID are exact in float64, so that equal embeddings tie
MAX_SCORES = 1 << 24  # scores held at a time: 134 MB
GALLERY_ROWS = 4096  # embeddings of the gallery made unit vectors at a time


@torch.no_grad()
def similarity_distributions(
    query_embeds: torch.Tensor, gallery_embeds: torch.Tensor, query_ids: torch.Tensor, gallery_ids: torch.Tensor
) -> np.ndarray:
    """SD of each query, float64 `(num_queries,)` in 0-1; NaN without a match. mSD is its mean.

    Others with exactly the score of a match stand before it, as in [`rank_queries`].

    Args:
        query_embeds (`torch.Tensor` of shape `(num_queries, dim)`): of any length but 0.
        gallery_embeds (`torch.Tensor` of shape `(num_gallery, dim)`): the same.
        query_ids (`torch.Tensor` of shape `(num_queries,)`): the person described.
        gallery_ids (`torch.Tensor` of shape `(num_gallery,)`): the person shown. Equal ids are a match.

    >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> similarity_distributions(queries, gallery, torch.tensor([7]), torch.tensor([9, 7])).round(3)  # 1 - exp(-2)
    array([0.865])
    """
    persons, shown = query_ids.cpu().numpy(), gallery_ids.cpu().numpy()
    found = np.full(len(persons), np.nan)
    rows = max(1, MAX_SCORES // len(shown))
    for start in range(0, len(persons), rows):
        units = _units(query_embeds[start : start + rows])
        parts = [units @ _units(part).T for part in gallery_embeds.split(GALLERY_ROWS)]
        scores = torch.cat(parts, dim=1).add_(1).div_(2).clamp_(min=1e-12).cpu().numpy()
        for number, of_query in enumerate(scores, start):
            matches = shown == persons[number]
            if matches.any():
                found[number] = _distribution(of_query[matches], of_query[~matches])
    return found


def _distribution(right: np.ndarray, wrong: np.ndarray) -> float:
    """SD of one query from the scores of its matches and of all others."""
    right, wrong = np.sort(right)[::-1], np.sort(wrong)[::-1]
    above = np.searchsorted(-wrong, -right, side="right")  # others at least as similar as each match
    of_right, of_wrong = np.cumsum(right), np.cumsum(np.append(0.0, wrong))[above]
    ratio = right.mean() / wrong.mean() if len(wrong) else np.inf
    return float(np.mean(of_right / (of_right + of_wrong)) * -np.expm1(-ratio))


def _units(embeds: torch.Tensor) -> torch.Tensor:
    """Unit vectors on the grid, float64."""
    return (torch.nn.functional.normalize(embeds.double(), dim=-1) * GRID).round_() / GRID
