"""Test-time steps for text-to-image retrieval that need no other model; off by default, named in every result.

They are not part of the plain protocol: one takes several descriptions as one query, the other looks at all queries
of the test set together. `examples/benchmark_rescoring.py` measures both. On drawn pedestrians and two small
CLIPs, phrasings won 8 to 12 points of R@1. k-reciprocal re-ranking never won R@1 and lost in most figures where each
person has two images; where each has five, it won 3 points of mAP and 9 of mINP with one model, at the price of 5
points of R@5, and nothing with the other: measure before use.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from ..modeling_gadms import GADMSForPreTraining
from ..person_retrieval.ranking import QueryRanks, rank_queries
from ..released.token_selection import TokenSelection
from .encoding import RetrievalSet

K1, K2, LAMBDA = 20, 6, 0.3  # of Zhong et al.
RESCORINGS = {
    "phrasings": "mean over the phrasings of an image",
    "k-reciprocal": f"k-reciprocal re-ranking, k1={K1}, k2={K2}, lambda={LAMBDA}",
}
# these, and one that embeds images and captions once more; see `released.token_selection`
TOKEN_SELECTION = "token-selection"
MATCHING = "matching"  # by a head of the whole model; see `matching`
SCORINGS = {**RESCORINGS, TOKEN_SELECTION: "mean of two cosines, the second of tokens selected as RDE does"}

ScoreRows = Callable[[int, int], np.ndarray]  # (start, stop) -> scores (stop - start, num_gallery)


def refusal(
    name: str,
    encoded: RetrievalSet,
    model: str,
    branch: TokenSelection | None = None,
    matcher: GADMSForPreTraining | None = None,
) -> str | None:
    """Why scoring by `name` has no meaning for this set and this model, in words; None where it has one."""
    if name == MATCHING and matcher is None:
        return f"{model} has no matching head; training with --matching_weight 0.5 gives it one"
    if name == TOKEN_SELECTION and branch is None:
        return f"{model} has no token selection; a converted checkpoint of RDE has"
    index = encoded.text_image_index
    if name == "phrasings" and len(index.unique()) == len(index):
        return "re-scoring by phrasings needs images with two captions or more; here each has one"
    return None


def rescore(name: str, encoded: RetrievalSet, progress: bool = True) -> QueryRanks:
    """Text-to-image ranks by one of [`RESCORINGS`]; each caption is a query.

    Raises:
        ValueError: another name, or phrasings where no image has two captions.
    """
    if name == "phrasings":
        texts = average_phrasings(encoded.text_embeds, encoded.text_image_index)
        return rank_queries(texts, encoded.image_embeds, encoded.text_person_ids, encoded.image_person_ids)
    if name == "k-reciprocal":
        scores = k_reciprocal_scores(encoded.text_embeds, encoded.image_embeds, progress=progress)
        return rank_scores(scores, encoded.text_person_ids, encoded.image_person_ids, progress=progress)
    raise ValueError(f"no re-scoring {name!r}; choose from {', '.join(RESCORINGS)}")


def average_phrasings(text_embeds: torch.Tensor, text_image_index: torch.Tensor) -> torch.Tensor:
    """Replace each caption by the mean of its image's captions, which gives the mean of their scores for every image.

    Args:
        text_embeds (`torch.Tensor` of shape `(M, D)`): unit norm.
        text_image_index (`torch.Tensor` of shape `(M,)`): captions with equal numbers describe the same thing.

    Returns:
        `torch.Tensor` of shape `(M, D)`, not normalised: its dot product with an image is the mean of the scores.

    Raises:
        ValueError: every image has a single caption.
    """
    _, group, count = text_image_index.unique(return_inverse=True, return_counts=True)
    if count.max() < 2:
        raise ValueError("re-scoring by phrasings needs images with two captions or more; here each has one")
    sums = torch.zeros(len(count), text_embeds.shape[1]).index_add_(0, group, text_embeds)
    return (sums / count[:, None])[group]


def k_reciprocal_scores(
    query_embeds: torch.Tensor,
    gallery_embeds: torch.Tensor,
    k1: int = K1,
    k2: int = K2,
    lambda_: float = LAMBDA,
    progress: bool = True,
) -> ScoreRows:
    """k-reciprocal re-ranking: near are items that share neighbours who count each other among their nearest.

    Queries and gallery are one set of `n` items; memory grows with `n * k1`, never with `n * n`.

    Args:
        query_embeds (`torch.Tensor` of shape `(Q, D)`), gallery_embeds (`(N, D)`): unit norm.
        k1 (`int`): neighbours of an item.
        k2 (`int`): nearest items, itself among them, whose features are averaged; 1 for itself alone.
        lambda_ (`float`): weight of the distance itself, the rest is that of the Jaccard distance.

    Returns:
        A function `(start, stop) -> (stop - start, N)` float64: scores of some queries, higher is nearer.

    Source: Zhong et al., *Re-ranking Person Re-identification with k-reciprocal Encoding*, CVPR 2017, equations 2 to
    12.
    """
    embeds = torch.cat([query_embeds, gallery_embeds]).double()
    num_queries, n = len(query_embeds), len(embeds)
    k1 = min(k1, n - 1)
    k2 = min(k2, k1 + 1)
    # the nearest items of each item, and the distance by which its weights are scaled
    neighbours = np.empty((n, k1 + 1), np.int64)
    farthest = np.empty(n)
    for start in tqdm(range(0, n, 256), desc="Neighbours", disable=not progress, leave=False):
        distances = 1 - embeds[start : start + 256] @ embeds.T
        nearest = distances.topk(k1 + 1, largest=False)
        neighbours[start : start + 256] = nearest.indices.numpy()
        farthest[start : start + 256] = distances.amax(dim=1).clamp_min(1e-12).numpy()
    near = _reciprocal(neighbours)
    half = _reciprocal(neighbours[:, : round(k1 / 2) + 1])

    # the feature of an item: weights over its reciprocal neighbours, summing to 1
    columns, values = [], []
    sizes = np.empty(n, np.int64)
    for item in tqdm(range(n), desc="Reciprocal neighbours", disable=not progress, leave=False):
        expanded = set(near[item])
        for neighbour in near[item]:
            # a neighbour's own neighbours join where more than two thirds of them are near the item already
            if 3 * len(half[neighbour] & near[item]) > 2 * len(half[neighbour]):
                expanded |= half[neighbour]
        own = np.array(sorted(expanded), np.int64)
        own_distances = 1 - (embeds[own] @ embeds[item]).numpy()
        weights = np.exp(-own_distances / farthest[item])
        columns.append(own)
        values.append(weights / weights.sum())
        sizes[item] = len(weights)
    column, value = np.concatenate(columns), np.concatenate(values)
    # the mean over k2 neighbours: their entries concatenated, entries of the same place summed
    members = neighbours[:, :k2].ravel()
    places = _ranges(np.cumsum(sizes)[members] - sizes[members], sizes[members])
    rows = np.repeat(np.arange(n), sizes[members].reshape(n, k2).sum(axis=1))
    keys, which = np.unique(rows * n + column[places], return_inverse=True)
    averaged = np.bincount(which, weights=value[places]) / k2
    return _jaccard_scores(keys // n, keys % n, averaged, embeds, farthest, num_queries, lambda_)


def _reciprocal(neighbours: np.ndarray) -> list[set[int]]:
    """For each item, the neighbours that have it among theirs; the item itself is always one of them."""
    lists = neighbours.tolist()
    sets = [set(own) | {item} for item, own in enumerate(lists)]
    return [{other for other in sets[item] if item in sets[other]} for item in range(len(lists))]


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The ranges of integers with the given starts and sizes, concatenated."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _jaccard_scores(
    row: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
    embeds: torch.Tensor,
    farthest: np.ndarray,
    num_queries: int,
    lambda_: float,
) -> ScoreRows:
    """The scores from sparse features: entries `value` at (`row`, `column`), by row, each row of sum 1."""
    # queries by row; the gallery by column, so that the items that share a neighbour lie side by side
    starts = np.searchsorted(row, np.arange(num_queries + 1))
    in_gallery = row >= num_queries
    order = np.argsort(column[in_gallery], kind="stable")
    holder, held = row[in_gallery][order] - num_queries, value[in_gallery][order]
    ends = np.searchsorted(column[in_gallery][order], np.arange(len(embeds) + 1))
    num_gallery = len(embeds) - num_queries

    def score_rows(start: int, stop: int) -> np.ndarray:
        distances = 1 - (embeds[start:stop] @ embeds[num_queries:].T).numpy()
        scores = -lambda_ * distances / farthest[start:stop, None]
        for query in range(start, stop):
            own = slice(starts[query], starts[query + 1])
            sizes = ends[column[own] + 1] - ends[column[own]]
            places = _ranges(ends[column[own]], sizes)
            smaller = np.minimum(np.repeat(value[own], sizes), held[places])
            shared = np.bincount(holder[places], weights=smaller, minlength=num_gallery)
            # both features sum to 1, so their maxima sum to 2 less the minima
            scores[query - start] += (1 - lambda_) * (shared / (2 - shared) - 1)
        return scores

    return score_rows


def rank_scores(
    score_rows: ScoreRows, query_ids: ArrayLike, gallery_ids: ArrayLike, block_size: int = 256, progress: bool = True
) -> QueryRanks:
    """Rank by scores that are not dot products of embeddings; among equal scores, wrong items come first.

    Args:
        score_rows (`Callable`): `(start, stop) -> (stop - start, num_gallery)` float64, higher is nearer.
        query_ids, gallery_ids (`torch.Tensor` of shape `(num_queries,)`, `(num_gallery,)`): int64.

    Raises:
        ValueError: a query has no match, or a score is NaN.
    """
    query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
    first, precision, penalty, counts = [], [], [], []
    for start in tqdm(range(0, len(query_ids), block_size), desc="Ranking", disable=not progress, leave=False):
        ids = query_ids[start : start + block_size]
        for query, scores in enumerate(score_rows(start, start + len(ids)), start):
            right = gallery_ids == query_ids[query]
            if not right.any() or np.isnan(scores).any():
                what = "has a score that is NaN" if right.any() else "has no match in the gallery"
                raise ValueError(f"query {query} {what}")
            matches = np.sort(scores[right])[::-1]
            wrong = np.sort(scores[~right])
            place = np.arange(1, len(matches) + 1)
            rank = place + len(wrong) - np.searchsorted(wrong, matches, side="left")
            first.append(rank[0])
            precision.append((place / rank).mean())
            penalty.append(len(matches) / rank[-1])
            counts.append(len(matches))
    return QueryRanks(np.array(first), np.array(precision), np.array(penalty), np.array(counts), np.array([], int))
