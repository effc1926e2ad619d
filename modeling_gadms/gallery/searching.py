"""Finds the rows nearest to a query, each scored exactly whatever the engine rounds.

The engine proposes rows; their cosines are computed anew, as the ranking does it: unit vectors are rounded to
multiples of 2**-26, whose dot products float64 adds up without any error, so that equal vectors tie. Ties are ordered
by id.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..person_retrieval.ranking import GRID
from .opt_out import NEAR
from .rows import vector_array

# The engine rounds the query to float16 (relative error of at most 2**-11 for each number) and adds up in float32: its
# cosine of two unit vectors is wrong by less than this.
ENGINE_ERROR = 1e-3


@dataclass(frozen=True)
class Hit:
    """One image of a result.

    Attributes:
        id (`str`): of the row; stable.
        uri (`str`): path below the folder that was added, or the name that the source gives.
        score (`float`): cosine; of several queries the weighted mean, less what `unlike` takes away.
        probability (`float`, *optional*): calibrated share of such matches in which the sentence is true of the image.
        metadata (`dict`): the user's columns.
    """

    id: str
    uri: str
    score: float
    probability: float | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """Rows near a direction, best first: `cosines` `(rows,)` and `vectors` `(rows, dimension)`, float64."""

    rows: list[dict[str, Any]]
    cosines: np.ndarray
    vectors: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors in multiples of 2**-26, float64; the last axis is the vector."""
    vectors = vectors.astype(np.float64)
    return np.rint(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) * GRID) / GRID


def find(
    rows: Any,
    direction: np.ndarray,
    k: int,
    columns: Iterable[str],
    *,
    where: Any,
    exact: bool,
    keep: Callable[[list[dict[str, Any]]], list[int]],
) -> Found:
    """The `k` best rows that `keep` leaves.

    Args:
        rows (`Rows`): the table, or what answers as it does.
        direction (`np.ndarray` of shape `(dimension,)`): the query; its length plays no part.
        k (`int`): how many.
        columns (`Iterable[str]`): what to read of a row besides its `id` and vector.
        where (*optional*): SQL that rows must satisfy, or another table's own condition; applied before the search.
        exact (`bool`): compare every row, whatever index there is.
        keep (`Callable`): the places, in order, to keep of rows in order of their cosine. It may leave out any row,
            but what it says of a row must not depend on those after it.
    """
    exact = exact or rows.index_facts() is None
    query, count = unit(direction), max(50, 4 * k)
    columns = sorted({"id", "vector", *columns})
    while True:
        found = rows.nearest(query, count, where, exact, columns)
        vectors = vector_array(found["vector"])
        cosines = unit(vectors) @ query
        ids = np.array(found["id"].to_pylist(), dtype=object)
        order = np.lexsort((ids.astype(str), -cosines)) if len(ids) else np.zeros(0, dtype=np.int64)
        records = _records(found, order)
        kept = keep(records)[:k]
        if len(found) < count or len(kept) == k and not exact:
            break
        # a row that the engine did not propose has at most the lowest cosine of those it did, rounded
        unseen = 1 - float(np.max(found["_distance"].to_numpy())) + ENGINE_ERROR
        if len(kept) == k and cosines[order[kept[-1]]] > unseen:
            break
        count *= 4
    best = order[kept]
    return Found([records[place] for place in kept], cosines[best], vectors[best].astype(np.float64))


def _records(found: pa.Table, order: np.ndarray) -> list[dict[str, Any]]:
    return found.drop_columns(["vector", "_distance"]).take(pa.array(order)).to_pylist()


def first_of_each_group(records: list[dict[str, Any]], column: str) -> list[int]:
    """Places of the rows, in order, that are not near-duplicates of an earlier one.

    With `column="phash"`, a duplicate's perceptual hash differs in at most 4 bits; with another, its value is equal,
    and rows without a value have no duplicates.
    """
    kept: list[int] = []
    if column == "phash":
        hashes = np.array([record["phash"] for record in records], dtype=np.uint64)
        for place in range(len(records)):
            if not (np.bitwise_count(hashes[kept] ^ hashes[place]) <= NEAR).any():
                kept.append(place)
        return kept
    seen = set()
    for place, record in enumerate(records):
        value = record[column]
        if value is None or value not in seen:
            kept.append(place)
            seen.add(value)
    return kept
