"""Stage `dedup`: of pictures with the same bytes, or with close perceptual hashes or embeddings, the best one stays.

Which copy is the best is a fixed order: pictures of an earlier run before those added since, for their captions are
paid for; then the larger box, the higher score, the name. A picture goes if one before it in that order is its
near-duplicate, whether or not that one stays itself. So the outcome depends neither on how pictures lie in shards nor
on how many processes work.

`find_duplicates` compares all shards; `dedup_shard` then copies a shard without its near-duplicates. The comparison is
made of small parts, shared out over the processes and each kept when it is done:

1. each crop shard deals out the keys of its rows to buckets on disk: once by their bytes, and once by each band of
   bits of which close hashes agree in one, 40 bytes each;
2. each bucket, of about `rows_in_memory` rows, is compared alone, and lists the rows that go;
3. each crop shard collects its rows from these lists.
"""

import json
import os
import shutil
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...files import write_json
from ...findings import DataError
from ...near_duplicates import ALL_BITS, bands
from ...rows.joined_parquet import without_images
from ..shards import CHANGEABLE, clear_half_written, read_batches, read_table, run_missing, shard_writer
from .embedding_duplicates import EmbeddingOptions, embedding_shards, find_close_embeddings
from .hash_duplicates import Search, compare_bucket, flagged_by_hash, rows_of_shard, write_keys

REASONS = ("duplicate_bytes", "duplicate_phash", "duplicate_embedding")
_MAX_DISTANCE = 16
_PLAN = pa.schema([("image_path", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class DedupOptions:
    """The rule for near-duplicates. A value that makes no sense raises `ValueError`.

    Args:
        max_distance: number of the 64 bits in which two perceptual hashes may differ. 0 asks for equal hashes; above
            8 the comparison gets slow.
        embedding: a model and a cosine, for near-duplicates that hashes miss.
        plan: folder that `find_duplicates` writes.
        rows_in_memory: keys that a process compares at a time, about 150 bytes each.
    """

    max_distance: int = 4
    embedding: EmbeddingOptions | None = None
    plan: str = field(default="", metadata=CHANGEABLE)
    rows_in_memory: int = field(default=2_000_000, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= _MAX_DISTANCE or self.rows_in_memory < 1:
            raise ValueError(
                f"max_distance must be in 0..{_MAX_DISTANCE}, not {self.max_distance}, and rows_in_memory at least 1, "
                f"not {self.rows_in_memory}"
            )


def find_duplicates(shards: list[str], options: DedupOptions, num_workers: int = 1) -> None:
    """Compare all rows of all crop shards and write to `options.plan` which ones go, one file per shard.

    Shards added since the plan was made are compared with all, and only theirs is written: an old row never goes for
    a new one. What an interrupted run has compared is kept, unless the crop shards have changed.

    Raises:
        `DataError`: the plan was made for shards that are not there.
    """
    names = [os.path.basename(shard) for shard in shards]
    done = os.path.join(options.plan, "done.json")
    runs = _runs(done)
    old = [name for run in runs for name in run]
    if missing := sorted(set(old) - set(names)):
        folder = os.path.dirname(os.path.abspath(options.plan))
        raise DataError(
            f"{options.plan}: made with shards that are gone ({', '.join(missing[:3])}); bring them back, or delete "
            f"{folder} and the folders of the later stages"
        )
    new = [name for name in names if name not in set(old)]
    if not new and os.path.exists(done):
        if os.path.isdir(work := os.path.join(options.plan, "work")):  # the run before ended just before it went
            shutil.rmtree(work)
        return
    runs = [*runs, new]
    # In the order of the runs, so that a shard keeps its number.
    places = dict(zip(names, shards, strict=True))
    ordered = [places[name] for run in runs for name in run]
    if options.embedding:
        embedding_shards(ordered, options.plan, options.embedding, num_workers)
    rows = sum(pq.read_metadata(shard).num_rows for shard in ordered)
    # Equal hashes are close in every band, and need but one.
    masks = (0, *(bands(options.max_distance) if options.max_distance else [ALL_BITS]))
    search = Search(options.plan, max(1, -(-rows // options.rows_in_memory)), masks, options.max_distance)
    added = [os.path.join(options.plan, name) for name in new]
    clear_half_written(options.plan)
    numbers = [number for number, run in enumerate(runs) for _ in run]
    search.begin(ordered, numbers, repr(options.embedding), added)

    keys = search.files("keys")
    run_missing(write_keys, zip(ordered, keys, strict=True), search, num_workers, "dedup: keys", short=True)
    lists = [path for path, _ in search.found()]
    run_missing(compare_bucket, zip(lists, lists, strict=True), search, num_workers, "dedup: comparing", short=True)
    if options.embedding:
        find_close_embeddings(search, ordered, rows, options.embedding, num_workers)
    plans = zip(ordered[len(old) :], added, strict=True)
    run_missing(write_plan, plans, search, num_workers, "dedup: plan", short=True)

    # Written last: its presence says that the plan is complete.
    write_json(done, runs)
    shutil.rmtree(search.work)


def _runs(done: str) -> list[list[str]]:
    """The names of the shards that each earlier run added."""
    if not os.path.exists(done):
        return []
    with open(done, encoding="utf-8") as file:
        runs = json.load(file)
    # Older plans are of one run, whose names lie in the list itself.
    return [runs] if runs and isinstance(runs[0], str) else runs


def dedup_shard(source: str, target: str, options: DedupOptions) -> dict[str, int]:
    """Copy a shard without the rows that the plan names, each counted by its reason (`REASONS`).

    Raises:
        `DataError`: `find_duplicates` has not been run.
    """
    plan = os.path.join(options.plan, os.path.basename(source))
    if not os.path.exists(os.path.join(options.plan, "done.json")) or not os.path.exists(plan):
        raise DataError(f"{plan}: no such plan; run `find_duplicates` on all shards first")
    gone = read_table(plan)
    schema = without_images(source, target)
    with shard_writer(target, schema) as shard:
        for batch in read_batches(source, schema.names):
            places = pc.index_in(batch["image_path"], gone["image_path"])
            shard.counts["rows_in"] += len(batch)
            shard.counts.update(gone["reason"].take(places.drop_null()).to_pylist())
            shard.write_batch(batch.filter(places.is_null()))
    return dict(shard.counts)


def write_plan(source: str, target: str, search: Search) -> None:
    """Write which rows of a crop shard go."""
    number = search.number_of(source)
    names = read_table(source, ["image_path"])["image_path"]
    flags = flagged_by_hash(search, number, len(names))
    embedded = os.path.join(search.work, "close")
    for name in sorted(os.listdir(embedded)) if os.path.isdir(embedded) else []:
        flags[rows_of_shard(os.path.join(embedded, name), number)] = REASONS.index("duplicate_embedding") + 1
    gone = np.flatnonzero(flags)
    reasons = pa.array([REASONS[flag - 1] for flag in flags[gone]], pa.string())
    with shard_writer(target, _PLAN) as plan:
        plan.write_batch(pa.table([names.combine_chunks().take(gone), reasons], schema=_PLAN))
