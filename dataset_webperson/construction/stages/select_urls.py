"""Stage `select`: COYO-700M's metadata -> addresses worth downloading, as a list for img2dataset.

python -m dataset_webperson.build CONFIG.yaml    # with a section `select`; stops at the list until it is downloaded

`select_shard` applies the rules to a file of metadata; `unique_urls` keeps one address per perceptual hash, over all
files. COYO itself drops pictures with a shorter side below 200 or proportions above 3.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...findings import DataError
from ..opt_out import OptOut
from ..shards import (
    CHANGEABLE,
    clear_half_written,
    read_table,
    recheck,
    run_missing,
    shard_counts,
    shard_writer,
)
from .hash_duplicates import Search, compare_bucket, deal_out, flagged_by_hash, hashes_of

_SCHEMA = pa.schema([("id", pa.int64()), ("url", pa.string()), ("image_phash", pa.string())])
_NUMBERS = ("width", "height", "num_faces", "nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score")
_BATCH = 1 << 16


@dataclass(frozen=True)
class SelectOptions:
    """Which pictures are worth downloading. The numbers are ours; the paper gives none.

    Args:
        metadata: folder of COYO's parquet files.
        min_side: pixels of the shorter side; a person's box alone must be 90 wide.
        max_watermark: highest `watermark_score`.
        max_nsfw_opennsfw2: highest `nsfw_score_opennsfw2`.
        max_nsfw_gantman: highest `nsfw_score_gantman`.
        min_faces: pictures with fewer faces count as faceless.
        faceless_share: faceless pictures make up at most this share of a file's addresses. They are allowed because
            persons seen from behind would otherwise be rare; which of them stay depends on their id alone.
        rows_in_memory: see `duplicates.DedupOptions`.
        opt_out: file with an opt-out list.
    """

    metadata: str = ""
    min_side: int = 200
    max_watermark: float = 0.5
    max_nsfw_opennsfw2: float = 0.2
    max_nsfw_gantman: float = 0.2
    min_faces: int = 1
    faceless_share: float = 0.2
    rows_in_memory: int = field(default=2_000_000, metadata=CHANGEABLE)
    opt_out: str | None = field(default=None, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if not 0 <= self.faceless_share < 1:
            raise ValueError(f"faceless_share must be at least 0 and below 1, not {self.faceless_share}")


def select_shard(source: str, target: str, options: SelectOptions) -> dict[str, int]:
    """Write `id, url, image_phash` of the rows of a COYO file that pass the rules.

    A row that does not pass counts under the first rule that it breaks: `value_missing`, `side`, `watermark`, `nsfw`,
    `faceless_over_quota`, `opted_out_<reason>`.
    """
    opt_out = OptOut.from_file(options.opt_out) if options.opt_out else OptOut()
    faceless_marks, quota = _faceless_quota(source, options)
    with shard_writer(target, _SCHEMA) as shard:
        for batch, problems in _judged(source, options, ("url", "image_phash")):
            if quota < len(faceless_marks):
                # The faceless rows with the lowest marks fill the quota.
                faceless = batch["num_faces"] < options.min_faces
                over = faceless & (_scatter(batch["id"]) >= faceless_marks[quota])
                problems = np.where((problems == "") & over, "faceless_over_quota", problems)

            shard.counts["rows_in"] += len(problems)
            names, numbers = np.unique(problems[problems != ""], return_counts=True)
            shard.counts.update(dict(zip(names.tolist(), numbers.tolist(), strict=True)))

            for place in np.flatnonzero(problems == ""):
                url = batch["url"][place]
                if reason := opt_out.excludes(url):
                    shard.counts[f"opted_out_{reason}"] += 1
                    continue
                shard.write({"id": int(batch["id"][place]), "url": url, "image_phash": batch["image_phash"][place]})
    return dict(shard.counts)


def _faceless_quota(source: str, options: SelectOptions) -> tuple[np.ndarray, int]:
    """The marks (see `_scatter`) of faceless rows that pass the rules, uint64, ascending, and how many may stay."""
    num_faced = 0
    marks = [np.empty(0, np.uint64)]
    for batch, problems in _judged(source, options):
        passed = problems == ""
        faceless = batch["num_faces"] < options.min_faces
        num_faced += int((passed & ~faceless).sum())
        marks.append(_scatter(batch["id"])[passed & faceless])
    # A share s of all addresses is s / (1 - s) of those with faces.
    quota = int(num_faced * options.faceless_share / (1 - options.faceless_share))
    return np.sort(np.concatenate(marks)), quota


def _judged(
    source: str, options: SelectOptions, texts: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of rows as columns, and for each row the rule that it breaks, or ""."""
    try:
        with pq.ParquetFile(source) as parquet:
            wanted = ["id", *_NUMBERS, "url", "image_phash"]
            if missing := set(wanted) - set(parquet.schema_arrow.names):
                raise DataError(f"{source}: no column {', '.join(sorted(missing))}; give COYO's metadata")
            for part in parquet.iter_batches(_BATCH, columns=wanted):
                gone = np.zeros(len(part), bool)
                for name in wanted:
                    gone |= part.column(name).is_null().to_numpy(zero_copy_only=False)
                batch = {name: part.column(name).to_numpy(zero_copy_only=False) for name in ("id", *_NUMBERS, *texts)}
                if part.column("id").null_count:
                    batch["id"] = part.column("id").fill_null(0).to_numpy(zero_copy_only=False)
                nsfw = batch["nsfw_score_opennsfw2"] > options.max_nsfw_opennsfw2
                nsfw |= batch["nsfw_score_gantman"] > options.max_nsfw_gantman
                rules = {
                    "value_missing": gone,
                    "side": np.minimum(batch["width"], batch["height"]) < options.min_side,
                    "watermark": batch["watermark_score"] > options.max_watermark,
                    "nsfw": nsfw,
                }
                yield batch, np.select(list(rules.values()), list(rules), default="").astype("U32")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a whole parquet file ({error}); download it again") from error


def _scatter(ids: np.ndarray) -> np.ndarray:
    """A random-looking number for each id: the finaliser of the generator SplitMix64."""
    mixed = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def unique_urls(shards: list[str], folder: str, options: SelectOptions, num_workers: int = 1) -> dict[str, int]:
    """Write `id, url` of the selected shards to `folder`; of equal perceptual hashes, the lowest id stays.

    If all files exist, nothing is computed again, but addresses opted out since then are removed.

    Returns:
        Counts: `rows_in`, `duplicate_phash`, `opted_out_<reason>`, `rows_out`.
    """
    clear_half_written(folder)
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    search = Search(folder, max(1, -(-rows // options.rows_in_memory)))
    targets = [os.path.join(folder, os.path.basename(shard)) for shard in shards]
    if not all(map(os.path.exists, targets)):
        search.begin(shards, [0] * len(shards), "", targets)
        keys = search.files("keys")
        run_missing(_write_keys, zip(shards, keys, strict=True), search, num_workers, "urls: keys", short=True)
        lists = [path for path, _ in search.found()]
        run_missing(compare_bucket, zip(lists, lists, strict=True), search, num_workers, "urls: comparing", short=True)
        run_missing(_write_urls, zip(shards, targets, strict=True), search, num_workers, "urls", short=True)
    if os.path.isdir(search.work):
        shutil.rmtree(search.work)
    opt_out = OptOut.from_file(options.opt_out) if options.opt_out else OptOut()
    if opt_out:
        recheck(targets, folder, opt_out, num_workers)
    total = Counter(rows_in=0, duplicate_phash=0, rows_out=0)
    for target in targets:
        total.update(shard_counts(target))
    return dict(total)


def _write_keys(source: str, target: str, search: Search) -> None:
    table = read_table(source, ["id", "image_phash"])
    ids = table["id"].to_numpy().astype(np.uint64)
    order = np.stack([ids, np.zeros_like(ids)], axis=1)
    deal_out(target, search, search.number_of(source), order, [hashes_of(table["image_phash"])])


def _write_urls(source: str, target: str, search: Search) -> None:
    table = read_table(source, ["id", "url"])
    stays = flagged_by_hash(search, search.number_of(source), len(table)) == 0
    with shard_writer(target, pa.schema([_SCHEMA.field("id"), _SCHEMA.field("url")])) as chosen:
        chosen.counts.update(rows_in=len(table), duplicate_phash=int((~stays).sum()))
        chosen.write_batch(table.filter(pa.array(stays)))
