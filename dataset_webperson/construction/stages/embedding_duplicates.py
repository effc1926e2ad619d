"""Duplicates by image embeddings: pictures are compared with those in their cells, see `embedding_cells`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ...files import replacing
from ...images import decode_rgb
from ...reading_ahead import ahead
from ..buckets import read_bucket, write_buckets
from ..shards import clear_half_written, read_rows, read_table, run_missing, run_stage, shard_writer
from .embedding_cells import Cells, cells_of, close_to_earlier_vectors, grow_cells
from .hash_duplicates import Search, flagged_by_hash, orders_of_shard, save_rows

_SCHEMA = pa.schema([("embedding", pa.list_(pa.float32()))])
_BATCH = 64
ROWS_OF_CELL = 2_000
CELLS_OF_BUCKET = 32
_SAMPLE_OF_CELL = 32  # rows of the sample from which cells are made


@dataclass(frozen=True)
class EmbeddingOptions:
    """Which embeddings to compare, and how close makes a near-duplicate.

    Args:
        model: Hub id or folder of a model with `get_image_features`, such as CLIP or GA-DMS.
        revision: branch, tag or commit of the Hub repository.
        min_cosine: two pictures with at least this cosine are near-duplicates.
        clusters: number of cells; 1 compares all pairs. By default one for 2,000 rows. A picture is compared with
            those of its cells; of the pairs, those on different sides of three borders or more can be missed.
    """

    model: str
    revision: str | None = None
    min_cosine: float = 0.97
    clusters: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_cosine <= 1 or (self.clusters is not None and self.clusters < 1):
            raise ValueError(
                f"min_cosine must be in 0..1 and clusters at least 1, not {self.min_cosine} and {self.clusters}"
            )


@lru_cache(maxsize=1)
def open_embedder(model: str, revision: str | None) -> tuple[Any, Any]:
    """The image processor and the model, on the GPU if there is one."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = AutoModel.from_pretrained(model, revision=revision).eval().to(device)
    return AutoImageProcessor.from_pretrained(model, revision=revision), opened


def embed_shard(source: str, target: str, options: EmbeddingOptions) -> dict[str, int]:
    """A stage: unit embeddings of a shard's images, in the order of its rows."""
    import torch  # here, as in `open_embedder`: the other stages start without it

    from modeling_gadms.evaluation.encoding import embed_images, pinned

    processor, model = open_embedder(options.model, options.revision)
    rows = read_rows(source, ["image", "image_path"])
    batches = (pinned(processor(images=images, return_tensors="pt"), model.device) for images in _decoded(rows))
    with torch.inference_mode(), shard_writer(target, _SCHEMA) as shard:
        for inputs in ahead(batches):
            vectors = embed_images(model, inputs).numpy()
            shard.counts["rows_in"] += len(vectors)
            for vector in vectors:
                shard.write({"embedding": vector})
    return dict(shard.counts)


def _decoded(rows: Iterator[dict[str, Any]]) -> Iterator[list[Image.Image]]:
    """The images of rows, a batch at a time."""
    while images := [decode_rgb(row["image"]["bytes"], row["image_path"]) for row in islice(rows, _BATCH)]:
        yield images


def embedding_shards(shards: list[str], plan: str, options: EmbeddingOptions, num_workers: int) -> list[str]:
    """Embed the shards that have not been embedded yet, and return all shards of embeddings."""
    folder = os.path.join(plan, "embeddings")
    run_stage(embed_shard, shards, folder, options, num_workers)
    return [os.path.join(folder, os.path.basename(shard)) for shard in shards]


def find_close_embeddings(
    search: Search, shards: list[str], rows: int, options: EmbeddingOptions, num_workers: int
) -> None:
    """List the rows that lie close to an earlier one, bucket by bucket, in the folder `close` of the search's work.

    Rows that the hashes flag have a better copy, and are not compared again.

    Args:
        search: its lists of flagged rows are complete, and its crop shards embedded.
        shards: all crop shards, in the order of the search.
        rows: number of their rows.
    """
    if not rows:
        return
    grouping = Grouping(search, options, options.clusters or max(1, -(-rows // ROWS_OF_CELL)), rows)

    def pairs(folder: str) -> list[tuple[str, str]]:
        return list(zip(shards, search.files(folder), strict=True))

    for folder in ("sample", "cells", "close"):
        clear_half_written(os.path.join(search.work, folder))
    run_missing(write_sample, pairs("sample"), grouping, num_workers, "dedup: sample", short=True)
    if not os.path.exists(grouping.tree):
        drawn = np.concatenate([np.load(path) for path in search.files("sample") if os.path.getsize(path) > 128])
        # In an order that does not depend on the shards.
        cells = grow_cells(drawn[:, 4:][np.lexsort(drawn[:, :4].T)], grouping.clusters)
        with replacing(grouping.tree) as part, open(part, "wb") as file:
            np.savez(file, centres=cells.centres, first=cells.first, leads=cells.leads, count=cells.count)
    run_missing(write_cells, pairs("cells"), grouping, num_workers, "dedup: cells", short=True)
    lists = [os.path.join(search.work, "close", f"{bucket}.npy") for bucket in range(grouping.buckets)]
    run_missing(compare_cells, [(path, path) for path in lists], grouping, num_workers, "dedup: comparing")


@dataclass(frozen=True)
class Grouping:
    """What every part of a comparison by embeddings is given.

    Args:
        search: the search by hashes.
        options: see there.
        clusters: number of cells that are asked for.
        rows: number of rows of all shards.
    """

    search: Search
    options: EmbeddingOptions
    clusters: int
    rows: int

    @property
    def tree(self) -> str:
        return os.path.join(self.search.work, "tree.npz")

    @property
    def buckets(self) -> int:
        return -(-self.clusters // CELLS_OF_BUCKET)

    def vectors(self, shard: str) -> np.ndarray:
        """The embeddings of a crop shard, `(n, D)` float16."""
        path = os.path.join(self.search.plan, "embeddings", os.path.basename(shard))
        column = read_table(path)["embedding"].combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float16)

    def cells(self) -> Cells:
        with np.load(self.tree) as saved:
            return Cells(saved["centres"], saved["first"], saved["leads"], int(saved["count"]))


def write_sample(source: str, target: str, grouping: Grouping) -> None:
    """Write the vectors of a random choice of a shard's rows, which their names decide, each after its name's hash."""
    keys = orders_of_shard(grouping.search, grouping.search.number_of(source))
    share = min(1.0, _SAMPLE_OF_CELL * grouping.clusters / grouping.rows)
    chosen = keys["order"][:, 1] < np.uint64(share * (2**64 - 2**12))
    # The hash in four parts, which float32 holds exactly.
    parts = keys["order"][chosen, 1][:, None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)
    vectors = grouping.vectors(source)[chosen].astype(np.float32) if chosen.any() else np.zeros((0, 0), np.float32)
    with replacing(target) as part, open(part, "wb") as file:
        np.save(file, np.concatenate([parts.astype(np.float32), vectors], axis=1))


def write_cells(source: str, target: str, grouping: Grouping) -> None:
    """Deal out the vectors of a shard that the hashes do not flag, with their keys, to the buckets of their cells."""
    number = grouping.search.number_of(source)
    keys, cells = orders_of_shard(grouping.search, number), grouping.cells()
    stays = flagged_by_hash(grouping.search, number, len(keys)) == 0
    kind = _record(cells.centres.shape[1])
    if not stays.any():
        write_buckets(target, np.zeros(0, kind), np.zeros(0, np.int64), grouping.buckets)
        return
    keys, vectors = keys[stays], grouping.vectors(source)[stays]
    rows, places = cells_of(cells, vectors.astype(np.float32), grouping.options.min_cosine)
    records = np.zeros(len(rows), kind)
    records["order"], records["row"] = keys["order"][rows], keys["row"][rows]
    records["cell"], records["vector"] = places, vectors[rows]
    write_buckets(target, records, places * grouping.buckets // cells.count, grouping.buckets)


def compare_cells(_: str, target: str, grouping: Grouping) -> None:
    """List the rows in the cells of one bucket that lie close to an earlier one; `target` names the bucket."""
    bucket = int(os.path.basename(target).removesuffix(".npy"))
    kind = _record(grouping.cells().centres.shape[1])
    records = read_bucket(grouping.search.files("cells"), bucket, kind)
    order = records["order"]
    by_cell = np.lexsort((records["row"], order[:, 1], order[:, 0], records["cell"]))
    gone = []
    for part in np.split(by_cell, np.flatnonzero(np.diff(records["cell"][by_cell])) + 1):
        close = close_to_earlier_vectors(records["vector"][part], grouping.options.min_cosine)
        gone.append(records["row"][part[close]])
    save_rows(target, np.concatenate(gone))


def _record(dimension: int) -> np.dtype:
    return np.dtype([("order", "<u8", 2), ("row", "<u8"), ("cell", "<u4"), ("vector", "<f2", (dimension,))])
