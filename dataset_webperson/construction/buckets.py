"""Records on disk, dealt out to buckets, so that a bucket can be worked on alone: by any process, and after a kill.

Each source shard writes one file with its records in the order of their buckets. A bucket is read as one slice of
every file, so that all buckets together are read once, whatever their number.
"""

from collections.abc import Iterable

import numpy as np

from ..files import replacing


def write_buckets(path: str, records: np.ndarray, buckets: np.ndarray, count: int) -> None:
    """Write records in the order of their buckets, after the places where the buckets begin.

    Args:
        records (`np.ndarray` of shape `(n,)`): of one type; within a bucket they keep their order.
        buckets (`np.ndarray` of shape `(n,)`): the bucket of each, from 0 to `count - 1`.
        count: number of buckets.
    """
    by_bucket = np.argsort(buckets, kind="stable")
    edges = np.searchsorted(buckets[by_bucket], np.arange(count + 1))
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, edges)
        records[by_bucket].tofile(file)


def read_bucket(paths: Iterable[str], bucket: int, kind: np.dtype) -> np.ndarray:
    """The records of one bucket from all files, one file after the other."""
    found = [np.empty(0, kind)]
    for path in paths:
        with open(path, "rb") as file:
            edges = np.load(file)
            start, stop = int(edges[bucket]), int(edges[bucket + 1])
            if start < stop:
                file.seek(start * kind.itemsize, 1)
                found.append(np.fromfile(file, kind, stop - start))
    return np.concatenate(found)
