"""The one ranking of the project: from embeddings to `R@1 R@5 R@10 mAP mINP`, block by block, without sorting rows.

The rank of a match is one plus the number of gallery items above it, so counting replaces most of the sorting:

1. each query's matches are found through sorted ids and get their *exact* score;
2. blocks of `float32` scores are compared with them. A negative clearly above or below a match is counted at once; one
   that `float32` cannot tell apart is scored exactly.

Exact means: unit vectors are rounded to multiples of 2**-26, whose dot products `float64` adds up without any rounding
error, in whatever order. Equal embeddings therefore tie on every device, at every block size and in every gallery
order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

__all__ = [
    "DIRECTIONS",
    "METRICS",
    "QueryRanks",
    "rank_both_ways",
    "rank_queries",
    "retrieval_metrics",
    "same_camera",
    "summarize_ranks",
]

METRICS = ("R@1", "R@5", "R@10", "mAP", "mINP")
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}

GRID = 2.0**26  # components of unit vectors are multiples of 1 / GRID: 2 * 26 + 1 bits fit float64's 53
UNIT_ROWS = 512  # embeddings made unit vectors at a time
GROUP_ROWS = 256  # queries whose matches are scored together
SUPER_ROWS = 16384  # queries that share one reading of the gallery
MAX_MATCHES = 1 << 21  # matches held at a time by one block of queries
SORT_FROM = 4  # matches per query from which sorting a *block* is faster than comparing it with each match: by NumPy,
SORT_FROM_ON_DEVICE = 40  # and by torch on another device
FEW = 48  # the scores above a match are gathered and sorted once they are less than 1 / FEW of the block
MAX_PAIRS = 4096  # pairs scored exactly at a time
MAX_SHARED = 1 << 16  # queries and gallery items together whose blocks of scores serve both directions

Exclude = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Embeds = torch.Tensor | ArrayLike  # (items, dim)
Ids = torch.Tensor | ArrayLike  # (items,), integers


@dataclass(frozen=True)
class QueryRanks:
    """Where the matches of each query are, in the order the queries were given.

    Attributes:
        first_match_rank (`np.ndarray` of shape `(num_queries,)`, int64): rank of the best match from 1; 0 if skipped.
        average_precision (`np.ndarray` of shape `(num_queries,)`, float64): in 0-1; NaN if skipped.
        inverse_negative_penalty (`np.ndarray` of shape `(num_queries,)`, float64): number of matches divided by the
            rank of the last one, in 0-1; NaN if skipped.
        num_matches (`np.ndarray` of shape `(num_queries,)`, int64): number of matching gallery items; 0 if skipped.
        skipped (`np.ndarray` of shape `(num_skipped,)`, int64): indices of the queries without a match.
    """

    first_match_rank: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    num_matches: np.ndarray
    skipped: np.ndarray


def retrieval_metrics(
    query_embeds: Embeds,
    gallery_embeds: Embeds,
    query_ids: Ids,
    gallery_ids: Ids,
    *,
    exclude: Exclude | torch.Tensor | np.ndarray | None = None,
    ties: str = "pessimistic",
    on_missing: str = "error",
    block_size: tuple[int, int] = (1024, 2048),
    normalize: bool = True,
) -> dict[str, float]:
    """`R@1`, `R@5`, `R@10`, `mAP` and `mINP`, each in 0-100; the arguments are those of [`rank_queries`].

    With `on_missing="skip"` the dictionary also has `skipped`, the number of queries left out of the means.

    Example:

    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> gallery = np.array([[0.8, 0.6], [0.0, 1.0], [1.0, 0.1]])
    >>> retrieval_metrics(queries, gallery, query_ids=[7, 9], gallery_ids=[7, 9, 8])
    {'R@1': 50.0, 'R@5': 100.0, 'R@10': 100.0, 'mAP': 75.0, 'mINP': 75.0}
    """
    ranks = rank_queries(
        query_embeds,
        gallery_embeds,
        query_ids,
        gallery_ids,
        exclude=exclude,
        ties=ties,
        on_missing=on_missing,
        block_size=block_size,
        normalize=normalize,
    )
    metrics = summarize_ranks(ranks)
    if on_missing == "skip":
        metrics["skipped"] = len(ranks.skipped)
    return metrics


def summarize_ranks(ranks: QueryRanks) -> dict[str, float]:
    """Means over the queries that have a match, in 0-100.

    >>> half = np.array([0.5])
    >>> summarize_ranks(QueryRanks(np.array([2]), half, half, np.array([1]), skipped=np.array([], dtype=np.int64)))
    {'R@1': 0.0, 'R@5': 100.0, 'R@10': 100.0, 'mAP': 50.0, 'mINP': 50.0}
    """
    kept = ranks.num_matches > 0
    metrics = {f"R@{k}": 100.0 * float(np.mean(ranks.first_match_rank[kept] <= k)) for k in (1, 5, 10)}
    metrics["mAP"] = 100.0 * float(np.mean(ranks.average_precision[kept]))
    metrics["mINP"] = 100.0 * float(np.mean(ranks.inverse_negative_penalty[kept]))
    return metrics


def same_camera(query_ids: Ids, gallery_ids: Ids, query_cameras: Ids, gallery_cameras: Ids) -> Exclude:
    """An `exclude` that leaves out a gallery image of the same person by the same camera, as re-identification does.

    All four are integer sequences, one entry per query or gallery item.

    >>> exclude = same_camera([7], [7, 7, 8], query_cameras=[1], gallery_cameras=[1, 2, 1])
    >>> exclude(torch.tensor([0]), torch.tensor([0, 1, 2])).tolist()
    [[True, False, False]]
    """
    query_ids, gallery_ids = _check_ids(query_ids, "query_ids"), _check_ids(gallery_ids, "gallery_ids")
    query_cameras = _check_ids(query_cameras, "query_cameras")
    gallery_cameras = _check_ids(gallery_cameras, "gallery_cameras")
    if len(query_ids) != len(query_cameras) or len(gallery_ids) != len(gallery_cameras):
        raise ValueError(
            f"each item needs one id and one camera, got {len(query_ids)} query_ids and {len(query_cameras)} "
            f"query_cameras, {len(gallery_ids)} gallery_ids and {len(gallery_cameras)} gallery_cameras"
        )

    def exclude(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        q, g = queries.cpu().numpy(), gallery.cpu().numpy()
        same = query_ids[q, None] == gallery_ids[None, g]
        return torch.from_numpy(same & (query_cameras[q, None] == gallery_cameras[None, g])).to(queries.device)

    return exclude


@torch.no_grad()
def rank_queries(
    query_embeds: Embeds,
    gallery_embeds: Embeds,
    query_ids: Ids,
    gallery_ids: Ids,
    *,
    exclude: Exclude | torch.Tensor | np.ndarray | None = None,
    ties: str = "pessimistic",
    on_missing: str = "error",
    block_size: tuple[int, int] = (1024, 2048),
    normalize: bool = True,
) -> QueryRanks:
    """Ranks the gallery for each query by cosine similarity and returns the ranks of the matches.

    The work is done on the device of the embeddings. Beside them it takes less than 300 MB at 512 dimensions, plus
    25 MB per thread and some 50 bytes per query and per gallery item.

    Args:
        query_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_queries, dim)`): any floating dtype; half precision
            is compared in `float32` and never rounded again.
        gallery_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_gallery, dim)`): the same.
        query_ids (integers of shape `(num_queries,)`): the person described; a sequence, array or tensor of integers.
        gallery_ids (integers of shape `(num_gallery,)`): the person shown. Equal ids are a match.
        exclude (callable or bool mask of shape `(num_queries, num_gallery)`, *optional*): pairs to leave out of the
            ranking (True = left out). A callable gets two int64 tensors, the indices of some queries and of some
            gallery items, and returns the mask of that block, so that no whole mask is needed; see [`same_camera`].
        ties (`"pessimistic"` or `"optimistic"`): whether negatives with exactly the score of a match stand before it
            or after it. Neither depends on the order of the gallery. All-equal scores are the extreme case.
        on_missing (`"error"` or `"skip"`): what to do about queries without a match in the gallery.
        block_size (`tuple[int, int]`): queries and gallery items compared at a time. Changes speed, never a rank.
        normalize (`bool`): False ranks by the plain dot product.

    Returns:
        [`QueryRanks`]

    Raises:
        ValueError: zero vectors, NaN or infinite values, dimensions or lengths that differ, nothing to rank, ids that
            are not integers or that never meet, queries without a match unless skipped.

    Example:

    >>> queries = torch.tensor([[1.0, 0.0]])
    >>> gallery = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> ranks = rank_queries(queries, gallery, query_ids=[5], gallery_ids=[5, 6, 5])
    >>> ranks.first_match_rank, ranks.average_precision.round(3), ranks.inverse_negative_penalty.round(3)
    (array([2]), array([0.583]), array([0.667]))
    """
    with _threads(query_embeds) as pool:
        ranker = _ranker(
            query_embeds,
            gallery_embeds,
            query_ids,
            gallery_ids,
            exclude,
            ties,
            on_missing,
            block_size,
            normalize,
            pool,
        )
        # Queries with similar numbers of matches lie side by side (little padding), those of one id too (scored once).
        num_matches = ranker.right - ranker.left
        order = np.lexsort((ranker.left, num_matches))
        order = order[num_matches[order] > 0]
        for blocks in _super_blocks(order, num_matches[order], ranker.max_rows):
            ranker.rank(blocks, pool)
        return ranker.result(on_missing)


@torch.no_grad()
def rank_both_ways(
    text_embeds: Embeds,
    image_embeds: Embeds,
    text_ids: Ids,
    image_ids: Ids,
    *,
    ties: str = "pessimistic",
    on_missing: str = "error",
    block_size: tuple[int, int] = (1024, 2048),
) -> tuple[QueryRanks, QueryRanks]:
    """Text to image and image to text: the two results of [`rank_queries`], from one similarity matrix.

    A block of scores serves its rows and its columns; sets of more than 65,536 texts and images together, or of more
    than 4 million matches, are ranked one way after the other, so that memory stays flat.

    Args:
        text_embeds, image_embeds, text_ids, image_ids, ties, on_missing, block_size: as in [`rank_queries`], with the
            texts as queries.

    Returns:
        `(QueryRanks of the texts, QueryRanks of the images)`

    Raises:
        ValueError: as [`rank_queries`], either way.

    >>> texts, images = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    >>> texts, images = rank_both_ways(texts, images, [5], [5, 6], on_missing="skip")
    >>> texts.first_match_rank, images.first_match_rank
    (array([2]), array([1, 0]))
    """
    sides = (text_embeds, image_embeds, text_ids, image_ids), (image_embeds, text_embeds, image_ids, text_ids)
    with _threads(text_embeds) as pool:
        forward, backward = (_ranker(*side, None, ties, on_missing, block_size, True, pool) for side in sides)
        num_matches = [ranker.right - ranker.left for ranker in (forward, backward)]
        num_items = sum(map(len, num_matches))
        num_pairs = sum(len(counts) * counts.max() for counts in num_matches)
        if num_items <= MAX_SHARED and num_pairs <= 2 * MAX_MATCHES:
            _rank_shared(forward, backward, pool)
            return forward.result(on_missing), backward.result(on_missing)
    texts, images = (rank_queries(*side, ties=ties, on_missing=on_missing, block_size=block_size) for side in sides)
    return texts, images


def _rank_shared(forward: _Ranker, backward: _Ranker, pool: ThreadPoolExecutor) -> None:
    """Ranks both ways; the rows of the one are the gallery of the other, in the order of its ids."""
    text_places, image_places = torch.arange(backward.num_gallery), torch.arange(forward.num_gallery)

    def started(ranker: _Ranker, other: _Ranker, parts: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, _Block]]:
        blocks = pool.map(lambda places: ranker.start(other.gallery.order[places].numpy()), parts)
        return [(places.to(ranker.device), block) for places, block in zip(parts, blocks, strict=True)]

    texts = started(forward, backward, text_places.split(forward.max_rows))
    images = started(backward, forward, image_places.split(forward.max_cols))

    def compare(text: tuple[torch.Tensor, _Block]) -> None:
        text_cols, text_block = text
        for image_cols, image_block in images:
            scores, flags, turned = forward.room(len(text_cols), len(image_cols))
            torch.mm(text_block.units, image_block.units.T, out=scores)
            forward.drop(scores, text_block, image_cols)  # the matches of the rows are those of the columns
            turned = turned.view(len(image_cols), len(text_cols)).copy_(scores.T)
            forward.count(text_block, image_cols, scores, flags)
            backward.count(image_block, text_cols, turned, flags.view(turned.shape))

    list(pool.map(compare, texts))
    for ranker, blocks in ((forward, texts), (backward, images)):
        list(pool.map(ranker.finish, [block for _, block in blocks]))


@contextmanager
def _threads(embeds: Embeds) -> Iterator[ThreadPoolExecutor]:
    """Threads that each handle whole blocks on one core; about half of the operations would not use more than one.

    Torch runs on one core in the calling thread too: OpenMP threads that served a small operation there
    keep spinning on the cores of the pool, and can make a call take ten times as long.
    """
    device = embeds.device if isinstance(embeds, torch.Tensor) else torch.device("cpu")
    cores = torch.get_num_threads()
    with torch.autocast(device.type, enabled=False):
        if device.type != "cpu":  # one thread feeds the device
            with ThreadPoolExecutor(1) as pool:
                yield pool
            return
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield pool
        finally:
            torch.set_num_threads(cores)


def _ranker(
    query_embeds: Embeds,
    gallery_embeds: Embeds,
    query_ids: Ids,
    gallery_ids: Ids,
    exclude: Exclude | torch.Tensor | np.ndarray | None,
    ties: str,
    on_missing: str,
    block_size: tuple[int, int],
    normalize: bool,
    pool: ThreadPoolExecutor,
) -> _Ranker:
    """Checks everything and finds each query's matches: the [`_Ranker`]."""
    if ties not in ("pessimistic", "optimistic"):
        raise ValueError(f'`ties` is "pessimistic" or "optimistic", not {ties!r}')
    if on_missing not in ("error", "skip"):
        raise ValueError(f'`on_missing` is "error" or "skip", not {on_missing!r}')
    query_embeds, gallery_embeds = _check_embeds(query_embeds, "query"), _check_embeds(gallery_embeds, "gallery")
    query_ids, gallery_ids = _check_ids(query_ids, "query_ids"), _check_ids(gallery_ids, "gallery_ids")
    _check_together(query_embeds, gallery_embeds, query_ids, gallery_ids)
    max_rows, max_cols = (int(n) for n in block_size)
    if min(max_rows, max_cols) < 1:
        raise ValueError(f"`block_size` is two positive numbers, queries and gallery items, not {block_size}")
    exclude = _check_exclude(exclude, len(query_ids), len(gallery_ids))

    # Sorted by id, the matches of a query are one range of the gallery.
    gallery_order = np.argsort(gallery_ids, kind="stable")
    sorted_ids = gallery_ids[gallery_order]
    left = np.searchsorted(sorted_ids, query_ids, side="left")
    right = np.searchsorted(sorted_ids, query_ids, side="right")
    if not exclude:
        _check_missing(right == left, on_missing)

    return _Ranker(
        queries=_Units(query_embeds, "query_embeds", True, pool),  # a query's own length cannot change its ranking
        gallery=_Units(gallery_embeds, "gallery_embeds", normalize, pool, order=gallery_order),
        left=left,
        right=right,
        exclude=exclude,
        pessimistic=ties == "pessimistic",
        max_rows=max_rows,
        max_cols=min(max_cols, len(gallery_ids)),
    )


def _super_blocks(order: np.ndarray, num_matches: np.ndarray, max_rows: int) -> Iterator[list[np.ndarray]]:
    """Yields lists of blocks of query indices; a list reads the gallery once, a block is compared at once.

    `num_matches` ascends, so the last query of a block has the most.
    """
    blocks: list[np.ndarray] = []
    start = 0
    while start < len(order):
        stop = min(start + max_rows, len(order))
        while stop - start > 1 and (stop - start) * num_matches[stop - 1] > MAX_MATCHES:
            stop = start + (stop - start) // 2
        size = sum(len(block) for block in blocks) + stop - start
        if blocks and (size > SUPER_ROWS or size * num_matches[stop - 1] > 2 * MAX_MATCHES):
            yield blocks
            blocks = []
        blocks.append(order[start:stop])
        start = stop
    if blocks:
        yield blocks


class _Units:
    """Embeddings as unit vectors on the grid, computed a few rows at a time."""

    def __init__(
        self,
        embeds: torch.Tensor,
        name: str,
        normalize: bool,
        pool: ThreadPoolExecutor,
        order: np.ndarray | None = None,
    ) -> None:
        self.embeds = embeds
        self.sorted = order is not None
        order = np.arange(len(embeds)) if order is None else order
        self.order = torch.from_numpy(order).to(embeds.device)
        peak = torch.empty(len(embeds), dtype=torch.float64, device=embeds.device)
        norm = torch.empty_like(peak)

        def measure(start: int) -> None:
            part = embeds[start : start + UNIT_ROWS].double()
            # Divided by its largest component first, so that no square overflows or vanishes.
            top = part.abs().amax(dim=1)
            peak[start : start + UNIT_ROWS] = top
            norm[start : start + UNIT_ROWS] = (part / top[:, None]).square().sum(dim=1).sqrt()

        list(pool.map(measure, range(0, len(embeds), UNIT_ROWS)))
        _check_values(peak, name)
        # Two factors: their product may leave the range of float64 where the values are extreme.
        self.norm = norm
        self.peak = peak
        if not normalize:  # one power of two for all: the order of dot products stays
            largest = (peak.log2() + norm.log2()).max().ceil()
            self.peak = torch.exp2(largest).expand_as(peak)
            self.norm = torch.ones_like(norm)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Unit vectors of `rows` (of the sorted order, if there is one), float64, each component on the grid."""
        if self.sorted:
            rows = self.order[rows]
        part = self.embeds[rows].double()
        part /= self.peak[rows, None]
        part *= (GRID / self.norm[rows])[:, None]
        return part.round_().div_(GRID)


@dataclass
class _Block:
    """Some queries on their way through the gallery; `P` is the largest number of matches of any of them."""

    rows: np.ndarray  # (R,) indices of the queries
    units: torch.Tensor  # (R, D) float32
    matches: torch.Tensor  # (R, P) float64, exact scores of the matches, ascending, padded with +inf
    low: torch.Tensor  # (R, P) float32, at or below this a score is certainly below the match
    high: torch.Tensor  # (R, P) float32, above this it is certainly above
    above: torch.Tensor  # (R, P) int64, negatives above each match so far
    unsure: list  # (row, match, gallery item) triples that float32 cannot order


class _Ranker:
    """Ranks blocks of queries; the four arrays of [`QueryRanks`] fill up."""

    def __init__(
        self,
        queries: _Units,
        gallery: _Units,
        left: np.ndarray,
        right: np.ndarray,
        exclude: Exclude | None,
        pessimistic: bool,
        max_rows: int,
        max_cols: int,
    ) -> None:
        self.queries, self.gallery = queries, gallery
        self.left, self.right = left, right
        self.exclude, self.pessimistic = exclude, pessimistic
        self.max_rows, self.max_cols = max_rows, max_cols
        self.device = gallery.embeds.device
        self.num_gallery, self.dim = gallery.embeds.shape
        self.scratch = threading.local()
        self.lock = threading.Lock()  # of the counts of a block, which several threads may add to
        self.first_match_rank = np.zeros(len(left), dtype=np.int64)
        self.num_matches = np.zeros(len(left), dtype=np.int64)
        self.average_precision = np.full(len(left), np.nan)
        self.inverse_negative_penalty = np.full(len(left), np.nan)

    def rank(self, parts: list[np.ndarray], pool: ThreadPoolExecutor) -> None:
        blocks = list(pool.map(self.start, parts))
        for start in range(0, self.num_gallery, self.max_cols):
            cols = torch.arange(start, min(start + self.max_cols, self.num_gallery), device=self.device)
            units = torch.cat(list(pool.map(lambda part: self.gallery(part).float(), cols.split(UNIT_ROWS))))

            def compare(block: _Block, cols: torch.Tensor = cols, units: torch.Tensor = units) -> None:
                scores, flags, _ = self.room(len(block.rows), len(cols))
                torch.mm(block.units, units.T, out=scores)
                self.drop(scores, block, cols)
                self.count(block, cols, scores, flags)

            list(pool.map(compare, blocks))
        list(pool.map(self.finish, blocks))

    def start(self, rows: np.ndarray) -> _Block:
        """Scores the matches of `rows`."""
        width = int((self.right - self.left)[rows].max())
        matches = torch.empty(len(rows), width, dtype=torch.float64, device=self.device)
        error = 0.0
        units = self.queries(torch.from_numpy(rows).to(self.device))
        for start in range(0, len(rows), GROUP_ROWS):
            group = slice(start, start + GROUP_ROWS)
            part, part_error = self.score_matches(rows[group], units[group], width)
            matches[start : start + GROUP_ROWS] = part
            error = max(error, part_error)
        matches = matches.sort(dim=1).values
        # Rounding errors of a float32 dot product grow with its partial sums and the root of their number. The error
        # seen on the matches counts too: the device may multiply in a lower precision than asked for.
        margin = 2.0**-23 * (self.dim**0.5 * matches.abs() + 4) + 8 * error
        margin = torch.where(matches.isfinite(), margin, 0.0)
        return _Block(
            rows=rows,
            units=units.float(),
            matches=matches,
            low=(matches - margin).float(),
            high=(matches + margin).float(),
            above=torch.zeros_like(matches, dtype=torch.int64),
            unsure=[],
        )

    def score_matches(self, rows: np.ndarray, query_units: torch.Tensor, width: int) -> tuple[torch.Tensor, float]:
        """Exact scores `(len(rows), width)` of the matches, +inf as padding, and the largest float32 error seen.

        `query_units` are those of `rows`, `(len(rows), D)` float64.
        """
        starts, first, which = np.unique(self.left[rows], return_index=True, return_inverse=True)
        sizes = self.right[rows[first]] - starts
        offsets = np.cumsum(sizes) - sizes
        # Column j of range i is gallery item starts[i] + j; the ranges of the ids lie one after the other.
        cols = torch.from_numpy(np.repeat(starts - offsets, sizes) + np.arange(sizes.sum())).to(self.device)
        offset = torch.from_numpy(offsets[which]).to(self.device)[:, None]
        size = torch.from_numpy(sizes[which]).to(self.device)[:, None]
        place = torch.arange(width, device=self.device) + offset
        own = place < offset + size
        result = torch.full((len(rows), width), torch.inf, dtype=torch.float64, device=self.device)
        query_rows = torch.from_numpy(rows).to(self.device)
        error = 0.0
        for start in range(0, len(cols), MAX_PAIRS):
            chunk = cols[start : start + MAX_PAIRS]
            units = self.gallery(chunk)
            scores = query_units @ units.T
            error = max(error, (query_units.float() @ units.float().T - scores).abs().max().item())
            if self.exclude:
                scores.masked_fill_(self.exclude(query_rows, self.gallery.order[chunk]), torch.inf)
            here = own & (place >= start) & (place < start + len(chunk))
            found = scores.gather(1, (place - start).clamp(0, len(chunk) - 1))
            result = torch.where(here, found, result)
        return result, error

    def count(self, block: _Block, cols: torch.Tensor, scores: torch.Tensor, flags: torch.Tensor) -> None:
        """Adds the negatives among `cols` that are above each match, from their `scores` as [`drop`] left them."""
        low, high = _count_above(scores, flags, block.low, block.high)
        near = low - high
        total = int(near.sum())
        if total > scores.numel() // 32:
            # Many ties, as in a collapsed model: the whole block exactly.
            exact = self.queries(torch.from_numpy(block.rows).to(self.device)) @ self.gallery(cols).T
            self.drop(exact, block, cols)
            limit = block.matches
            if self.pessimistic:  # at least the match = above the number before it
                limit = torch.nextafter(limit, torch.full_like(limit, -torch.inf))
            above = _count_above(exact, torch.empty_like(exact), limit)[0]
            with self.lock:
                block.above += above
            return
        unsure = []
        if total:
            flagged = near.nonzero()
            for start in range(0, len(flagged), 1024):
                row, match = flagged[start : start + 1024].T
                chunk = scores[row]
                found = (chunk > block.low[row, match, None]) & (chunk <= block.high[row, match, None])
                which, col = found.nonzero(as_tuple=True)
                unsure.append(torch.stack([row[which], match[which], cols[col]]))
        with self.lock:
            block.above += high
            block.unsure += unsure
            if sum(triples.shape[1] for triples in block.unsure) > 1 << 18:
                self.settle(block)

    def room(self, *shape: int) -> list[torch.Tensor]:
        """Three float32 blocks of `shape`, in memory that this thread used for earlier blocks."""
        size = shape[0] * shape[1]
        if not hasattr(self.scratch, "rows") or self.scratch.rows.shape[1] < size:
            self.scratch.rows = torch.empty(3, size, device=self.device)
        return [row[:size].view(shape) for row in self.scratch.rows]

    def drop(self, scores: torch.Tensor, block: _Block, cols: torch.Tensor) -> None:
        """Takes matches and excluded pairs out of a block of scores, by index: only negatives are counted."""
        first = int(cols[0])
        start = np.maximum(self.left[block.rows] - first, 0)
        size = np.minimum(self.right[block.rows] - first, len(cols)) - start
        rows = np.flatnonzero(size > 0)
        if len(rows):
            start, size = start[rows], size[rows]
            ends = np.cumsum(size)
            flat = np.repeat(rows * scores.shape[1] + start - (ends - size), size) + np.arange(ends[-1])
            scores.view(-1).index_fill_(0, torch.from_numpy(flat).to(self.device), -torch.inf)
        if self.exclude:
            queries = torch.from_numpy(block.rows).to(self.device)
            scores.masked_fill_(self.exclude(queries, self.gallery.order[cols]), -torch.inf)

    def settle(self, block: _Block) -> None:
        """Scores exactly the pairs that float32 could not order."""
        if not block.unsure:
            return
        query_rows = torch.from_numpy(block.rows).to(self.device)
        for row, match, item in torch.cat(block.unsure, dim=1).split(MAX_PAIRS, dim=1):
            scores = torch.linalg.vecdot(self.queries(query_rows[row]), self.gallery(item))
            limit = block.matches[row, match]
            above = scores >= limit if self.pessimistic else scores > limit
            block.above.index_put_((row, match), above.long(), accumulate=True)
        block.unsure.clear()

    def finish(self, block: _Block) -> None:
        """From counts to ranks; a query whose matches were all excluded keeps its 0 matches."""
        self.settle(block)
        num_matches = block.matches.isfinite().sum(dim=1)
        kept = num_matches > 0
        rows, num_matches, above = block.rows[kept.cpu().numpy()], num_matches[kept], block.above[kept]
        if not len(rows):
            return
        # The last of the ascending matches is the first found: place 1.
        place = num_matches[:, None] - torch.arange(above.shape[1], device=self.device)
        rank = above + place
        precision = torch.where(place > 0, place.double() / rank, 0.0)
        best = rank.gather(1, num_matches[:, None] - 1)[:, 0]
        self.num_matches[rows] = num_matches.cpu().numpy()
        self.first_match_rank[rows] = best.cpu().numpy()
        self.average_precision[rows] = (precision.sum(dim=1) / num_matches).cpu().numpy()
        self.inverse_negative_penalty[rows] = (num_matches.double() / rank[:, 0]).cpu().numpy()

    def result(self, on_missing: str) -> QueryRanks:
        _check_missing(self.num_matches == 0, on_missing)
        return QueryRanks(
            first_match_rank=self.first_match_rank,
            average_precision=self.average_precision,
            inverse_negative_penalty=self.inverse_negative_penalty,
            num_matches=self.num_matches,
            skipped=np.flatnonzero(self.num_matches == 0),
        )


def _count_above(scores: torch.Tensor, flags: torch.Tensor, *limits: torch.Tensor) -> list[torch.Tensor]:
    """The number of scores in each row that are above each of its limits.

    `scores` is `(R, C)`; `flags` has the same size and dtype and is overwritten; each of `limits` is `(R, P)`,
    ascending, the first the lowest; the result is `(R, P)` int64 for each of them.
    """
    width = limits[0].shape[1]
    if width >= (SORT_FROM if scores.device.type == "cpu" else SORT_FROM_ON_DEVICE):
        return _search(scores, limits)

    # Every score is compared with the lowest matches, until few scores are left above; these are gathered and sorted.
    counts = [torch.zeros(limit.shape, dtype=torch.int64, device=scores.device) for limit in limits]
    for k in range(width):
        for limit, count in zip(reversed(limits), reversed(counts), strict=True):  # the lowest limit leaves the flags
            # Into numbers, not booleans: both the comparison and the sum are several times faster.
            torch.gt(scores, limit[:, k, None], out=flags)
            count[:, k] = flags.sum(dim=1)

        above = counts[0][:, k]
        if k + 1 < width and above.sum() * FEW < scores.numel():
            kept = _gather(scores, flags, above)
            rest = _search(kept, [limit[:, k + 1 :] for limit in limits])
            for count, found in zip(counts, rest, strict=True):
                count[:, k + 1 :] = found
            break
    return counts


def _gather(scores: torch.Tensor, flags: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """The flagged scores of each row, moved to its front: `(R, max(above))`, filled up with -inf.

    `above` is `(R,)` int64, the number of flags in each row.
    """
    flat = _places(flags)
    kept = scores.new_full((len(scores), int(above.max())), -torch.inf)

    # Score i of `flat` lies i - first[r] places behind the start of its row r.
    first = above.cumsum(0) - above
    row_starts = torch.arange(len(scores), device=flat.device) * kept.shape[1]
    shift = (row_starts - first).repeat_interleave(above, output_size=len(flat))
    place = shift.add_(torch.arange(len(flat), device=flat.device))

    kept.view(-1).scatter_(0, place, scores.view(-1).index_select(0, flat))
    return kept


def _places(flags: torch.Tensor) -> torch.Tensor:
    """Where flags are not zero, counted row after row, int64. On the CPU NumPy finds them three times as fast."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy() > 0))
    return flags.view(-1).nonzero()[:, 0]


def _search(scores: torch.Tensor, limits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[`_count_above`] by sorting the scores. NumPy sorts rows on the CPU, several times as fast as torch does."""
    ordered = torch.from_numpy(np.sort(scores.numpy())) if scores.device.type == "cpu" else scores.sort(dim=1).values
    return [scores.shape[1] - torch.searchsorted(ordered, limit.contiguous(), right=True) for limit in limits]


def _check_embeds(embeds: Embeds, side: str) -> torch.Tensor:
    name = f"{side}_embeds"
    if not isinstance(embeds, torch.Tensor):
        embeds = np.asarray(embeds)
        if embeds.dtype.kind not in "fiu":
            raise ValueError(f"`{name}` holds {embeds.dtype}, not real numbers")
        # A copy where torch cannot share the memory: read-only, of negative stride, or of foreign byte order.
        native = np.ascontiguousarray(embeds, dtype=embeds.dtype.newbyteorder("="))
        embeds = torch.from_numpy(native if native.flags.writeable else native.copy())
    embeds = embeds.detach()
    if embeds.ndim != 2:
        raise ValueError(f"`{name}` has shape {tuple(embeds.shape)}; one vector per item is needed: (items, dim)")
    if not len(embeds):
        raise ValueError(f"`{name}` is empty: there is nothing to rank")
    if not embeds.shape[1]:
        raise ValueError(f"`{name}` has vectors of dimension 0")
    if embeds.is_complex() or embeds.dtype == torch.bool:
        raise ValueError(f"`{name}` holds {embeds.dtype}, not real numbers")
    return embeds


def _check_ids(ids: Ids, name: str) -> np.ndarray:
    """Ids as int64, without a passage through floating point."""
    ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"`{name}` has shape {ids.shape}; one id per item is needed")
    if not len(ids):
        raise ValueError(f"`{name}` is empty")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"`{name}` holds {ids.dtype}; ids are integers (number the names first)")
    if ids.dtype.kind == "u" and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"`{name}` holds {ids.max()}, which does not fit int64")
    return ids.astype(np.int64)


def _check_together(
    query_embeds: torch.Tensor, gallery_embeds: torch.Tensor, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> None:
    if query_embeds.shape[1] != gallery_embeds.shape[1]:
        raise ValueError(
            f"queries have dimension {query_embeds.shape[1]} and gallery items {gallery_embeds.shape[1]}: "
            "embed both with the same model"
        )
    if query_embeds.device != gallery_embeds.device:
        raise ValueError(f"queries are on {query_embeds.device}, the gallery on {gallery_embeds.device}")
    for side, embeds, ids in (("query", query_embeds, query_ids), ("gallery", gallery_embeds, gallery_ids)):
        if len(embeds) != len(ids):
            raise ValueError(f"{len(embeds)} `{side}_embeds` but {len(ids)} `{side}_ids`: each item needs one id")


def _check_values(peak: torch.Tensor, name: str) -> None:
    for bad, what in ((~peak.isfinite(), "NaN or infinite values"), (peak == 0, "nothing but zeros")):
        rows = bad.nonzero()[:, 0]
        if len(rows):
            raise ValueError(f"{len(rows)} of {len(peak)} `{name}` hold {what}, the first at index {int(rows[0])}")


def _check_exclude(
    exclude: Exclude | torch.Tensor | np.ndarray | None, num_queries: int, num_gallery: int
) -> Exclude | None:
    if exclude is None or callable(exclude):
        return exclude
    mask = exclude if isinstance(exclude, torch.Tensor) else torch.from_numpy(np.asarray(exclude))
    if mask.dtype != torch.bool or mask.shape != (num_queries, num_gallery):
        raise ValueError(
            f"the mask `exclude` is {mask.dtype} of shape {tuple(mask.shape)}; "
            f"bool of shape {(num_queries, num_gallery)} is needed"
        )
    return lambda queries, gallery: mask[queries.to(mask.device)][:, gallery.to(mask.device)].to(queries.device)


def _check_missing(missing: np.ndarray, on_missing: str) -> None:
    """Refuses queries without a match, or only the case that no query has one."""
    if missing.all():
        raise ValueError(f"none of the {len(missing)} queries has a match in the gallery: the ids never meet")
    if on_missing == "error" and missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(missing)} queries have no match in the gallery, the first at index "
            f'{np.flatnonzero(missing)[0]}; on_missing="skip" leaves them out'
        )
