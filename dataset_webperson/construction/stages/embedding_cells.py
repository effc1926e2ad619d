"""Cells of the space of embeddings, as a tree, so that a picture is compared with those of its own cells alone.

A node of the tree has up to 32 centres, each of which leads to another node or is a cell. A vector goes to the nearest
centre, and to the second nearest too where a near-duplicate of it might lie on that side of the border: two vectors
of which neither lies within half their distance of a border are on one side of it. So a pair is missed only where
three or more cells meet. Finding the cells of a vector costs the depth of the tree: n log n for n vectors.
"""

from dataclasses import dataclass

import numpy as np

_CENTRES = 32
_ROUNDS = 4  # of k-means
_ROUNDING = 1e-3  # of float16


@dataclass(frozen=True)
class Cells:
    """A tree, flat: node k has the centres `first[k]` to `first[k + 1] - 1`.

    Attributes:
        centres (`np.ndarray` of shape `(m, D)`, float32): unit vectors.
        first (`np.ndarray` of shape `(nodes + 1,)`).
        leads (`np.ndarray` of shape `(m,)`): to which node a centre leads; for a cell, `-1 - its number`.
        count: number of cells.
    """

    centres: np.ndarray
    first: np.ndarray
    leads: np.ndarray
    count: int


def grow_cells(sample: np.ndarray, count: int) -> Cells:
    """Cells for vectors like those of a sample, `(n, D)` float32 unit vectors; about `count`, and no more than those.

    The first vectors of the sample are the first centres; k-means then moves them.
    """
    centres: list[np.ndarray] = []
    first: list[int] = [0]
    leads: list[int] = []
    cells = 0
    todo = [(sample, min(count, len(sample)))]
    if todo[0][1] <= 1:
        return Cells(np.zeros((0, sample.shape[1]), np.float32), np.array([0, 0]), np.zeros(0, np.int64), 1)
    number = 0
    while number < len(todo):  # children are appended: nodes are numbered by their level
        vectors, wanted = todo[number]
        levels = int(np.ceil(np.log(wanted) / np.log(_CENTRES) - 1e-9))  # below this node, of about equal width
        found, nearest = _k_means(vectors, int(np.ceil(wanted ** (1 / levels) - 1e-9)))
        for place in range(len(found)):
            mine = vectors[nearest == place]
            # Crowded regions get more cells.
            share = min(len(mine), round(wanted * len(mine) / len(vectors)))
            if levels > 1 and share > 1 and len(mine) < len(vectors):
                leads.append(len(todo))
                todo.append((mine, share))
            else:
                leads.append(-1 - cells)
                cells += 1
        centres.append(found)
        first.append(first[-1] + len(found))
        number += 1
    return Cells(np.concatenate(centres), np.array(first), np.array(leads), cells)


def _k_means(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit centres, at most `count`, none of them without vectors, and the number of each vector's nearest one."""
    centres = np.unique(vectors[:count], axis=0)
    for _ in range(_ROUNDS):
        nearest = (vectors @ centres.T).argmax(1)
        kept = np.unique(nearest)
        sums = np.stack([vectors[nearest == place].sum(0) for place in kept])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    nearest = (vectors @ centres.T).argmax(1)
    kept = np.unique(nearest)
    return centres[kept], np.searchsorted(kept, nearest)


def cells_of(cells: Cells, vectors: np.ndarray, min_cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells of unit vectors, `(n, D)` float32: pairs of a row and a cell, as two arrays.

    Args:
        cells: the tree.
        vectors: the rows.
        min_cosine: near-duplicates have at least this cosine.
    """
    reach = np.sqrt(2 - 2 * min_cosine) / 2 + _ROUNDING
    rows, nodes = np.arange(len(vectors)), np.zeros(len(vectors), np.int64)
    if not len(cells.centres):
        return rows, nodes
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(rows):
        by_node = np.argsort(nodes, kind="stable")
        rows, nodes = rows[by_node], nodes[by_node]
        next_rows, next_leads = [], []
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(nodes)) + 1):
            mine, node = rows[part], nodes[part[0]]
            low, high = cells.first[node], cells.first[node + 1]
            for place, chosen in _nearest_two(vectors[mine], cells.centres[low:high], reach):
                next_rows.append(mine[place])
                next_leads.append(cells.leads[low + chosen])
        rows, leads = np.concatenate(next_rows), np.concatenate(next_leads)
        found.append((rows[leads < 0], -1 - leads[leads < 0]))
        rows, nodes = rows[leads >= 0], leads[leads >= 0]
    return np.concatenate([rows for rows, _ in found]), np.concatenate([places for _, places in found])


def _nearest_two(vectors: np.ndarray, centres: np.ndarray, reach: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places of vectors and the centre that each goes to: all with the nearest, some with another one besides."""
    everyone = np.arange(len(vectors))
    cosines = vectors @ centres.T
    nearest = cosines.argmax(1)
    if len(centres) == 1:
        return [(everyone, nearest)]
    apart = np.sqrt(np.maximum(2 - 2 * centres @ centres.T, 1e-12))[nearest]
    # How far each vector lies from the plane between its nearest centre and another one.
    gaps = (cosines[everyone, nearest][:, None] - cosines) / apart
    gaps[everyone, nearest] = np.inf
    second = gaps.argmin(1)
    near = np.flatnonzero(gaps[everyone, second] <= reach)
    return [(everyone, nearest), (near, second[near])]


def close_to_earlier_vectors(vectors: np.ndarray, min_cosine: float, block: int = 1_024) -> np.ndarray:
    """Which of the unit vectors, `(n, D)` float16, have at least this cosine with one that stands before them."""
    close = np.zeros(len(vectors), bool)
    for place in range(0, len(vectors), block):
        later = vectors[place : place + block].astype(np.float32)
        for other in range(0, place + 1, block):
            earlier = later if other == place else vectors[other : other + block].astype(np.float32)
            cosines = later @ earlier.T
            if other == place:
                cosines = np.tril(cosines, -1)  # within a block, only with the rows before each
            close[place : place + block] |= (cosines >= min_cosine).any(1)
    return close
