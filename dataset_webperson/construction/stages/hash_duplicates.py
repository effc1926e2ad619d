"""The search for equal bytes and close perceptual hashes, in parts that any process can do; see `duplicates`."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...files import replacing, written_once
from ...near_duplicates import close_to_earlier
from ..buckets import read_bucket, write_buckets
from ..shards import clear_half_written, read_table

# Ascending, `order` is: run, box and score (the best first), then a hash of the name.
KEY = np.dtype([("value", "<u8", 2), ("order", "<u8", 2), ("row", "<u8")])
_MOST_RUNS = 1 << 12
_ROW_BITS = 32  # `row` is the number of the shard, and in its lower bits the place in it


@dataclass(frozen=True)
class Search:
    """What every part of a search is given.

    Args:
        plan: folder of the results; the search works in its `work`.
        parts: number of buckets of each kind.
        masks: for each kind of buckets the bits of the hash that it goes by; 0 for values that must be equal.
        max_distance: number of bits in which hashes may differ.
    """

    plan: str
    parts: int
    masks: tuple[int, ...] = (0,)
    max_distance: int = 0

    @property
    def work(self) -> str:
        return os.path.join(self.plan, "work")

    def begin(self, shards: list[str], runs: list[int], options: str, results: Iterable[str]) -> None:
        """Make `work`, or go on in it. What another search left, of other shards or options, is removed first.

        Args:
            shards: the files to search.
            runs: the number of the run that added each.
            options: whatever else the results follow from.
            results: the files that the search is to write.
        """
        facts = [os.stat(shard) for shard in shards]
        state = {
            "shards": [os.path.basename(shard) for shard in shards],
            "runs": [min(run, _MOST_RUNS - 1) for run in runs],
            "files": [[fact.st_size, fact.st_mtime_ns] for fact in facts],
            "options": [self.parts, list(self.masks), self.max_distance, options],
        }
        path = os.path.join(self.work, "state.json")
        if not (os.path.exists(path) and written_once(path, state) == state):
            shutil.rmtree(self.work, ignore_errors=True)
            for result in filter(os.path.exists, results):
                os.remove(result)
            written_once(path, state)
        clear_half_written(os.path.join(self.work, "keys"))
        clear_half_written(os.path.join(self.work, "found"))

    def state(self) -> dict[str, list]:
        """`shards`, the names of all shards, and `runs`, the number of the run that added each."""
        with open(os.path.join(self.work, "state.json"), encoding="utf-8") as file:
            return json.load(file)

    def number_of(self, shard: str) -> int:
        return self.state()["shards"].index(os.path.basename(shard))

    def files(self, folder: str) -> list[str]:
        """The files of all shards in a folder of `work`."""
        return [os.path.join(self.work, folder, f"{name}.npy") for name in self.state()["shards"]]

    def found(self) -> list[tuple[str, int]]:
        """The lists of rows that the hashes flag, each with the number of its reason; those of bytes come first."""
        names = [(kind, part) for kind in range(len(self.masks)) for part in range(self.parts)]
        return [(os.path.join(self.work, "found", f"{kind}-{part}.npy"), min(kind, 1)) for kind, part in names]


def write_keys(source: str, target: str, search: Search) -> None:
    """Deal out the keys of a crop shard to the buckets of every kind."""
    state = search.state()
    number = state["shards"].index(os.path.basename(source))
    table = read_table(source, ["image_path", "image_sha256", "phash", "box", "box_score"])
    x0, y0, x1, y1 = table["box"].combine_chunks().flatten().to_numpy().astype(np.float64).reshape(-1, 4).T
    # Keys are sorted in ascending order: area and score are inverted so that the best box comes first.
    area = 2**32 - 1 - ((x1 - x0) * (y1 - y0)).round().clip(0, 2**32 - 1).astype(np.uint64)
    score = 2**20 - 1 - (table["box_score"].to_numpy().clip(0, 1) * (2**20 - 1)).round().astype(np.uint64)
    names = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in table["image_path"].to_pylist()]
    order = np.zeros((len(table), 2), np.uint64)
    order[:, 0] = np.uint64(state["runs"][number] << 52) | area << np.uint64(20) | score
    order[:, 1] = np.frombuffer(b"".join(names), ">u8")
    digests = np.frombuffer(bytes.fromhex("".join(table["image_sha256"].to_pylist())), ">u8").reshape(-1, 4)
    deal_out(target, search, number, order, [digests[:, :2], *[hashes_of(table["phash"])] * (len(search.masks) - 1)])


def hashes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Hashes from their 16 hexadecimal digits, `(n, 2)`: a hash, and 0."""
    hashes = np.frombuffer(bytes.fromhex("".join(column.to_pylist())), ">u8").astype(np.uint64)
    return np.stack([hashes, np.zeros_like(hashes)], axis=1)


def deal_out(target: str, search: Search, number: int, order: np.ndarray, values: list[np.ndarray]) -> None:
    """Write the keys of shard `number`: `order` and, for each kind of buckets, `values`, all `(n, 2)`."""
    keys = np.zeros(len(order), KEY)
    keys["order"] = order
    keys["row"] = np.arange(len(order), dtype=np.uint64) + np.uint64(number << _ROW_BITS)
    records, buckets = [], []
    for kind, (mask, value) in enumerate(zip(search.masks, values, strict=True)):
        mine = keys.copy()
        mine["value"] = value
        spread = mine["value"][:, 0] & np.uint64(mask) if mask else mine["value"][:, 0]
        # Values of one band lie anywhere among the bits: multiplied, they fill the buckets evenly.
        spread = spread * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
        records.append(mine)
        buckets.append(spread.astype(np.int64) % search.parts + kind * search.parts)
    write_buckets(target, np.concatenate(records), np.concatenate(buckets), len(search.masks) * search.parts)


def compare_bucket(_: str, target: str, search: Search) -> None:
    """List the rows of one bucket that go for another row of it; `target` names the bucket."""
    kind, part = map(int, os.path.basename(target).removesuffix(".npy").split("-"))
    keys = read_bucket(search.files("keys"), kind * search.parts + part, KEY)
    keys = keys[_in_order(keys["order"][:, 0], keys["order"][:, 1], keys["row"])]
    # Rows of the same value: the first stays, and stands in for the others below.
    values = np.ascontiguousarray(keys["value"].T)
    same = _in_order(*values, np.arange(len(keys)))
    repeats = np.append(False, (values[:, same[1:]] == values[:, same[:-1]]).all(0))[: len(keys)]
    gone = np.zeros(len(keys), bool)
    gone[same[repeats]] = True
    if kind and search.max_distance:
        first = np.flatnonzero(~gone)
        gone[first[close_to_earlier(values[0, first], search.max_distance, search.masks[kind])]] = True
    save_rows(target, keys["row"][gone])


def _in_order(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The places of rows in ascending order of the first column, then of the others, as `np.lexsort` would have them.

    The first column tells most rows apart: only those that it does not are sorted by all.
    """
    first = np.ascontiguousarray(first)
    order = np.argsort(first)
    same = first[order[1:]] == first[order[:-1]]
    if same.any():
        tied = np.append(False, same) | np.append(same, False)
        rows = order[tied]
        order[tied] = rows[np.lexsort([column[rows] for column in (*reversed(others), first)])]
    return order


def save_rows(path: str, rows: np.ndarray) -> None:
    """Write a list of rows, ascending, from which `rows_of_shard` reads those of one shard."""
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, np.unique(rows))


def rows_of_shard(path: str, number: int) -> np.ndarray:
    """The places, in shard `number`, of the rows that a list names."""
    rows = np.load(path, mmap_mode="r") if os.path.getsize(path) > 128 else np.empty(0, np.uint64)
    low, high = np.searchsorted(rows, np.array([number, number + 1], np.uint64) << np.uint64(_ROW_BITS))
    return (rows[low:high] & np.uint64((1 << _ROW_BITS) - 1)).astype(np.int64)


def flagged_by_hash(search: Search, number: int, rows: int) -> np.ndarray:
    """For each row of shard `number` one more than the number of its reason, 0 if no other row has its hash."""
    flags = np.zeros(rows, np.uint8)
    for path, reason in reversed(search.found()):  # bytes last, for they are the reason where both are
        flags[rows_of_shard(path, number)] = reason + 1
    return flags


def orders_of_shard(search: Search, number: int) -> np.ndarray:
    """The keys of shard `number` in the order of its rows, as the search by bytes has them."""
    path = search.files("keys")[number]
    keys = np.concatenate([read_bucket([path], part, KEY) for part in range(search.parts)])
    return keys[np.argsort(keys["row"])]
