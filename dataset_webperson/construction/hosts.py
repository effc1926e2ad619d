"""What came back from each host: `WORK/hosts.parquet`, with `host`, `result` and the number of `images`.

Results are `downloaded`, the reasons for which an image is rejected, and for failed downloads what the downloader
says, in short: `http_404`, `timeout`, `robots_tag`, `not_downloaded`. Each shard is counted by the stage `crop`.
"""

import os
import re
from collections import Counter
from glob import escape, glob

import pyarrow as pa
import pyarrow.compute as pc

from .opt_out import host_of
from .shards import read_table, shard_writer

SCHEMA = pa.schema([("host", pa.string()), ("result", pa.string()), ("images", pa.int64())])
_TOGETHER = 64  # shards whose counts are added up at a time
_HTTP = re.compile(r"HTTP Error (\d{3})")


def failure(message: str | None) -> str:
    """A downloader's message in short.

    >>> failure("HTTP Error 404: Not Found"), failure("<urlopen error timed out>"), failure(None)
    ('http_404', 'timeout', 'not_downloaded')
    """
    text = message or ""
    if found := _HTTP.search(text):
        return f"http_{found[1]}"
    if "timed out" in text:
        return "timeout"
    return "robots_tag" if "X-Robots-Tag" in text else "not_downloaded"


class HostCounts:
    """The results of the images of a shard."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, url: str | None, result: str) -> None:
        self._counts[host_of(url) if url else "", result] += 1

    def write(self, path: str) -> None:
        rows = [
            {"host": host, "result": result, "images": count} for (host, result), count in sorted(self._counts.items())
        ]
        with shard_writer(path, SCHEMA) as shard:
            shard.write_batch(pa.Table.from_pylist(rows, schema=SCHEMA))


def add_up_hosts(folder: str, path: str) -> None:
    """Add up the counts of all shards in `folder`, most images first, and write them to `path`."""
    total, waiting = SCHEMA.empty_table(), []
    files = sorted(glob(os.path.join(escape(folder), "*.parquet")))
    for number, name in enumerate(files, 1):
        waiting.append(read_table(name))
        if number % _TOGETHER == 0 or number == len(files):
            found = pa.concat_tables([total, *waiting]).group_by(["host", "result"]).aggregate([("images", "sum")])
            total = found.rename_columns({"images_sum": "images"}).select(SCHEMA.names).cast(SCHEMA)
            waiting = []
    total = total.sort_by([("images", "descending"), ("host", "ascending"), ("result", "ascending")])
    with shard_writer(path, SCHEMA) as shard:
        shard.write_batch(total)


def top_hosts(path: str, most: int = 15) -> dict[str, dict[str, int]]:
    """The results of all hosts together, under "", and of the hosts with the most images; empty without the file."""
    found: dict[str, Counter[str]] = {"": Counter()}
    if not os.path.exists(path):
        return {}
    table = read_table(path)
    for row in table.group_by("result").aggregate([("images", "sum")]).to_pylist():
        found[""][row["result"]] = row["images_sum"]
    images = table.group_by("host").aggregate([("images", "sum")])
    largest = images.sort_by([("images_sum", "descending"), ("host", "ascending")])["host"].slice(0, most)
    for row in table.filter(pc.is_in(table["host"], largest.combine_chunks())).to_pylist():
        found.setdefault(row["host"] or "no address", Counter())[row["result"]] += row["images"]
    return {host: dict(results) for host, results in found.items() if results}
