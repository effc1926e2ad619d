"""Writes changed rows file by file, so that a break loses little."""

import math
import os
from collections.abc import Callable

import datasets

from dataset_webperson.release_shards import write_whole


def write_shards(
    rows: datasets.Dataset,
    folder: str,
    change: Callable[[datasets.Dataset], datasets.Dataset],
    rows_per_shard: int,
) -> list[str]:
    """Write the training rows as `change` leaves them, and return the files; files that exist already stay."""
    count = math.ceil(len(rows) / rows_per_shard)
    files = []
    for number in range(count):
        file = os.path.join(folder, f"train-{number:05d}-of-{count:05d}.parquet")
        files.append(file)
        if os.path.exists(file):
            continue
        start = number * rows_per_shard
        shard = rows.select(range(start, min(start + rows_per_shard, len(rows))))
        # in memory, or every shard leaves a copy in the cache
        write_whole(change(shard.flatten_indices(keep_in_memory=True)), file)
    return files
