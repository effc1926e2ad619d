"""Stage `dedup`: of pictures with the same bytes, or with close perceptual hashes or embeddings, the best one stays.

Which copy is the best is a fixed order: larger box, then higher score, then the name. A picture goes if one before it
in that order is its near-duplicate, whether or not that one stays itself. So the outcome depends neither on how
pictures lie in shards nor on how many processes work.

`find_duplicates` compares all shards, once; `dedup_shard` then copies a shard without its near-duplicates. The keys
that are compared lie on disk (48 bytes per row) and are read in parts of `rows_in_memory` rows.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...files import write_json
from ...findings import DataError
from ...near_duplicates import close_pairs
from ..shards import CHANGEABLE, clear_half_written, read_rows, rows_schema, shard_writer
from .embedding_duplicates import EmbeddingOptions, embedding_shards, flag_close_embeddings

REASONS = ("", "duplicate_bytes", "duplicate_phash", "duplicate_embedding")
_MAX_DISTANCE = 16
KEYS = np.dtype([("phash", "<u8"), ("bytes", "<u8", 2), ("order", "<u8", 2), ("row", "<u8")])
_PLAN = pa.schema([("image_path", pa.string()), ("reason", pa.string())])
_CHUNK = 1 << 20  # keys of the file in memory while it is swept


@dataclass(frozen=True)
class DedupOptions:
    """The rule for near-duplicates. A value that makes no sense raises `ValueError`.

    Args:
        max_distance: number of the 64 bits in which two perceptual hashes may differ. 0 asks for equal hashes; above
            8 the comparison gets slow.
        embedding: a model and a cosine, for near-duplicates that hashes miss.
        plan: folder that `find_duplicates` writes.
        rows_in_memory: keys compared at a time, 48 bytes each.
    """

    max_distance: int = 4
    embedding: EmbeddingOptions | None = None
    plan: str = field(default="", metadata=CHANGEABLE)
    rows_in_memory: int = field(default=4_000_000, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= _MAX_DISTANCE or self.rows_in_memory < 1:
            raise ValueError(
                f"max_distance must be in 0..{_MAX_DISTANCE}, not {self.max_distance}, and rows_in_memory at least 1, "
                f"not {self.rows_in_memory}"
            )


def find_duplicates(shards: list[str], options: DedupOptions, num_workers: int = 1) -> None:
    """Compare all rows of all crop shards and write to `options.plan` which ones go, one file per shard.

    Raises:
        `DataError`: the plan was made for other shards.
    """
    names = [os.path.basename(shard) for shard in shards]
    done = os.path.join(options.plan, "done.json")
    if os.path.exists(done):
        with open(done, encoding="utf-8") as file:
            if json.load(file) != names:
                folder = os.path.dirname(os.path.abspath(options.plan))
                raise DataError(
                    f"{options.plan}: made for other shards: some were added or removed; delete {folder} and the "
                    "folders of the later stages: a new picture may be the better copy of an old one"
                )
        return
    embedded = []
    if options.embedding:
        embedded = embedding_shards(shards, options.plan, options.embedding, num_workers)

    work = os.path.join(options.plan, "work")
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    clear_half_written(options.plan)
    os.makedirs(work)

    # One flag per row of all shards, in their order: the number of a reason, or 0 for rows that stay.
    sizes = [pq.read_metadata(shard).num_rows for shard in shards]
    flags = np.empty(0, np.uint8)
    if sum(sizes):  # an empty file cannot be mapped
        keys = _write_keys(shards, sum(sizes), os.path.join(work, "keys"))
        flags = np.memmap(os.path.join(work, "flags"), np.uint8, "w+", shape=(len(keys),))
        flag_duplicates(keys, flags, options)
        if options.embedding:
            flag_close_embeddings(embedded, keys, flags, options.embedding, os.path.join(work, "embeddings"))

    start = 0
    for shard, name, size in zip(shards, names, sizes, strict=True):
        with shard_writer(os.path.join(options.plan, name), _PLAN) as plan:
            for number, row in enumerate(read_rows(shard, ["image_path"])):
                if reason := REASONS[flags[start + number]]:
                    plan.write({**row, "reason": reason})
        start += size

    # Written last: its presence says that the plan is complete.
    shutil.rmtree(work)
    write_json(done, names)


def dedup_shard(source: str, target: str, options: DedupOptions) -> dict[str, int]:
    """Copy a shard without the rows that the plan names, each counted by its reason (`REASONS`).

    Raises:
        `DataError`: `find_duplicates` has not been run.
    """
    plan = os.path.join(options.plan, os.path.basename(source))
    if not os.path.exists(os.path.join(options.plan, "done.json")) or not os.path.exists(plan):
        raise DataError(f"{plan}: no such plan; run `find_duplicates` on all shards first")
    gone = {row["image_path"]: row["reason"] for row in read_rows(plan)}
    with shard_writer(target, rows_schema(source)) as shard:
        for row in read_rows(source):
            shard.counts["rows_in"] += 1
            if reason := gone.get(row["image_path"]):
                shard.counts[reason] += 1
            else:
                shard.write(row)
    return dict(shard.counts)


def _write_keys(shards: list[str], count: int, path: str) -> np.memmap:
    keys = np.memmap(path, KEYS, "w+", shape=(count,))
    columns = ["image_path", "image_sha256", "phash", "box", "box_score"]
    number = 0
    for shard in shards:
        for row in read_rows(shard, columns):
            x0, y0, x1, y1 = row["box"]
            # Keys are sorted in ascending order: area and score are inverted so that the best box comes first.
            area = 2**32 - 1 - min(round((x1 - x0) * (y1 - y0)), 2**32 - 1)
            score = 2**32 - 1 - round(min(max(row["box_score"], 0.0), 1.0) * (2**32 - 1))
            name = hashlib.blake2b(row["image_path"].encode(), digest_size=8).digest()
            digest = bytes.fromhex(row["image_sha256"])
            parts = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
            order = area << 32 | score, int.from_bytes(name, "big")
            keys[number] = (int(row["phash"], 16), parts, order, number)
            number += 1
    return keys


def flag_duplicates(keys: np.ndarray, flags: np.ndarray, options: DedupOptions) -> None:
    """Write the number of a reason into `flags` for each row that goes.

    Args:
        keys (`np.ndarray` of shape `(n,)`): records of hash, bytes, order and row; may be on disk.
        flags (`np.ndarray` of shape `(n,)`, uint8): 0 for rows that stay.
    """
    for part in _parts(keys, flags, lambda chunk: chunk["bytes"][:, 0] >> np.uint64(48), options.rows_in_memory):
        _, first = np.unique(part["bytes"], axis=0, return_index=True)
        flags[np.delete(part["row"], first)] = REASONS.index("duplicate_bytes")
    same = REASONS.index("duplicate_phash")
    for part in _parts(keys, flags, lambda chunk: chunk["phash"] >> np.uint64(48), options.rows_in_memory):
        _, first = np.unique(part["phash"], return_index=True)
        flags[np.delete(part["row"], first)] = same
    # Rows already flagged have a better copy with the same hash, which stands in for them here.
    near = np.zeros(len(keys), bool)
    bands = options.max_distance + 1 if options.max_distance else 0
    for band in range(bands):
        # Hashes that differ in d bits agree in at least one of d + 1 bands, so only hashes that share a band meet.
        low, high = 64 * band // bands, 64 * (band + 1) // bands
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        coarse = np.uint64(max(0, high - low - 16))

        def digit(
            chunk: np.ndarray, shift: np.uint64 = shift, mask: np.uint64 = mask, coarse: np.uint64 = coarse
        ) -> np.ndarray:
            return (chunk["phash"] >> shift & mask) >> coarse

        for part in _parts(keys, flags, digit, options.rows_in_memory):
            values = part["phash"] >> shift & mask
            by_value = np.argsort(values, kind="stable")  # stable: rows of one value keep their order
            edges = np.flatnonzero(np.diff(values[by_value])) + 1
            for group in np.split(by_value, edges):
                if len(group) > 1:
                    near[_later_ones(part[group], options.max_distance)] = True
    flags[near] = same


def _later_ones(group: np.ndarray, max_distance: int) -> np.ndarray:
    """The rows of an ordered group that lie close to an earlier one."""
    later = np.zeros(len(group), bool)
    for pairs in close_pairs(group["phash"], group["phash"], max_distance):
        later[pairs[pairs[:, 0] < pairs[:, 1], 1]] = True
    return group["row"][later]


def _parts(
    keys: np.ndarray, flags: np.ndarray, digit: Callable[[np.ndarray], np.ndarray], limit: int
) -> Iterator[np.ndarray]:
    """Unflagged rows, ordered, in parts of about `limit`; rows with one digit (below 2**16) share a part."""
    sizes = np.zeros(1 << 16, np.int64)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK][flags[start : start + _CHUNK] == 0]
        sizes += np.bincount(digit(chunk).astype(np.int64), minlength=len(sizes))
    first = 0
    while first < len(sizes):
        filled = np.cumsum(sizes[first:])
        stop = first + max(1, int(np.searchsorted(filled, limit, side="right")))
        if filled[stop - first - 1]:
            found = []
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK][flags[start : start + _CHUNK] == 0]
                digits = digit(chunk)
                found.append(chunk[(digits >= first) & (digits < stop)])
            part = np.concatenate(found)
            yield part[np.lexsort((part["row"], part["order"][:, 1], part["order"][:, 0]))]
        first = stop
