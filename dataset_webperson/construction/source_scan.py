"""A quick look at every tar and parquet of a source before anything is paid for: what cannot be read, and why.

The scan reads names and texts and passes over the bytes of images. Its findings lie in `WORK/scan`, a shard each, and
a shard that changed since is looked at again. With what the crop stage rejects they make up `WORK/rejected.parquet`:
a row for each file that is not in the data, with `shard`, `name` and `reason`.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape, glob

import pyarrow as pa
import pyarrow.parquet as pq

from ..findings import DataError
from .shards import read_rows, run_stage, shard_counts, shard_targets, shard_writer
from .sources import count_images, scan_images, stray_files
from .tar_images import BadShardError

ON_BAD_SHARD = ("error", "skip")
REJECTED = pa.schema([("shard", pa.string()), ("name", pa.string()), ("reason", pa.string())])
BROKEN = ("tar_cut", "tar_empty", "parquet_cut")  # the whole shard cannot be used
_FATAL = (*BROKEN, "name_not_utf8", "url_not_text")  # with `on_bad_shard: error`
_SHOWN = 5
_FEW = 32  # shards


@dataclass(frozen=True)
class Scan:
    """What is in a source.

    Attributes:
        shards: those that can be read.
        sizes: the number of images of each, those that were not downloaded among them.
        counts: `rows_in` files, `rows_out` images, and the files that are none by their reasons.
    """

    shards: list[str]
    sizes: dict[str, int]
    counts: dict[str, int]


def scan_shard(source: str, target: str, options: None) -> dict[str, int]:
    """A stage: names what cannot be used of a shard. Counts `images`, and the shard's size and time."""
    state = os.stat(source)
    with shard_writer(target, REJECTED) as shard:
        shard.counts.update({"bytes": state.st_size, "time_ns": state.st_mtime_ns, "images": 0})
        try:
            for image in scan_images(source):
                shard.counts["rows_in"] += 1
                if not image.problem:
                    shard.counts["images"] += 1
                elif image.problem == "not_downloaded":  # there is no file to name
                    shard.counts["not_downloaded"] += 1
                else:
                    shard.write({"shard": source, "name": image.name or image.source_id, "reason": image.problem})
        except BadShardError as error:
            shard.counts["images"] = shard.counts["not_downloaded"] = 0
            shard.write({"shard": source, "name": "", "reason": error.reason})
    return dict(shard.counts)


def scan_source(folder: str, shards: list[str], work: str, on_bad_shard: str, num_workers: int) -> Scan:
    """Look at every shard of a source.

    Raises:
        `DataError`: with `on_bad_shard="error"`, when something cannot be read; names the first of it and the cure.
    """
    place = os.path.join(work, "scan")
    targets = shard_targets(shards, place)
    listed = [shard for shard in shards if shard.endswith(".json")]
    looked_at = [shard for shard in shards if not shard.endswith(".json")]
    for shard in looked_at:
        if os.path.exists(targets[shard]) and not _is_of(targets[shard], shard):
            os.remove(targets[shard])
    if looked_at:
        # processes take longer to start than a few shards to be read
        run_stage(scan_shard, looked_at, place, None, num_workers if len(looked_at) > _FEW else 0)

    sizes = {shard: count_images(shard) or 0 for shard in listed}
    counts: Counter[str] = Counter()
    bad: list[str] = []
    for shard in looked_at:
        reasons = [(row["name"], row["reason"]) for row in read_rows(targets[shard])]
        counts.update(reason for _, reason in reasons)
        bad += [f"{os.path.basename(shard)} {name} ({reason})" for name, reason in reasons if reason in _FATAL]
        if not any(reason in BROKEN for _, reason in reasons):
            scanned = shard_counts(targets[shard])
            counts["not_downloaded"] += scanned.get("not_downloaded", 0)
            sizes[shard] = scanned["images"] + scanned.get("not_downloaded", 0)
    if bad and on_bad_shard == "error":
        shown = ", ".join(" ".join(words.split()) for words in bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
        raise DataError(
            f"{folder}: {len(bad):,} of its files cannot be used: {shown}; repair or remove them, or set "
            "`on_bad_shard: skip` to have them listed and left out"
        )
    counts.update(reason for _, reason in stray_files(folder, shards))
    images = sum(sizes.values()) - counts["not_downloaded"]
    found = {"rows_in": images + counts.total(), "rows_out": images}
    found |= {reason: count for reason, count in sorted(counts.items()) if count}
    return Scan([shard for shard in shards if shard in sizes], sizes, found)


def _is_of(target: str, shard: str) -> bool:
    """Whether a finding is of the shard as it is now."""
    state, counts = os.stat(shard), shard_counts(target)
    return (counts["bytes"], counts["time_ns"]) == (state.st_size, state.st_mtime_ns)


def write_rejected(folder: str, shards: list[str], crops: str, path: str) -> int:
    """Write the list of every rejected file: of the source, of the scan, and of the crop stage.

    Args:
        folder: the source.
        shards: all of its shards, those that are skipped too.
        crops: folder of the crop stage.
        path: of the parquet.

    Returns:
        The number of files.
    """
    work = os.path.dirname(path)
    with shard_writer(path, REJECTED) as rejected:
        for row in _rejected(folder, shards, work, crops):
            rejected.write(row)
    return rejected.counts["rows_out"]


def _rejected(folder: str, shards: list[str], work: str, crops: str) -> Iterator[dict[str, str]]:
    for name, reason in stray_files(folder, shards):
        yield {"shard": "", "name": name, "reason": reason}
    scans = [os.path.join(work, "scan", os.path.basename(os.path.splitext(shard)[0]) + ".parquet") for shard in shards]
    for scan in filter(os.path.exists, scans):
        for row in read_rows(scan):
            # the crop stage meets the others again, in the shards that it reads
            if row["reason"] in BROKEN:
                yield row | {"shard": os.path.basename(row["shard"])}
    for path in sorted(glob(os.path.join(escape(crops), "rejected", "*.parquet"))):
        yield from read_rows(path)


def write_rejected_images(target: str, source: str, rejected: Iterable[tuple[str, str]]) -> None:
    """Write the images `(name, reason)` that the crop stage rejects of a shard, beside the stage's own `target`."""
    path = os.path.join(os.path.dirname(target), "rejected", os.path.basename(target))
    rows = [{"shard": os.path.basename(source), "name": name, "reason": reason} for name, reason in rejected]
    if rows:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=REJECTED), path + ".part")
        os.replace(path + ".part", path)
    elif os.path.exists(path):
        os.remove(path)
