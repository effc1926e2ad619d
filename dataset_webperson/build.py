"""Build a WebPerson from web images: select, crop, dedup, caption, quality and release, all described in one file.

    python -m dataset_webperson.build CONFIG.yaml [--dry_run] [--engine local | slurm | jobs]

Everything that the file names is checked before the first stage. Each stage writes its shards below the folder that
the file calls `work`. After an interruption, give the same command again: only what is missing is made. With a section
`select` and no images yet, it writes the list of addresses, says how to download them with img2dataset, and stops.
`WORK/report.html` shows what every stage left, and why the rest was dropped. With `--engine`, datatrove's executors do
the work of all stages (`dataset_webperson/construction/engines.py`); the bytes are the same.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from glob import escape, glob
from typing import Any

import pyarrow.parquet as pq

from .command_line import CommandParser, command
from .construction.caption_statistics import stage_statistics
from .construction.captions.cache import TOKENS, tokens_spent
from .construction.captions.repeated import find_repeated
from .construction.config import BuildConfig, ReleaseSection, read_config
from .construction.engine_options import ENGINES
from .construction.estimate import SAMPLE, StageEstimate, describe, estimate
from .construction.hosts import add_up_hosts
from .construction.opt_out import OptOut
from .construction.preflight import (
    check_captioners,
    check_disk,
    check_embedder,
    check_files,
    check_nsfw_model,
    check_quality_model,
    forget_models,
)
from .construction.quality_report import write_report
from .construction.run_card import describe_run
from .construction.shards import (
    Engine,
    Stage,
    on_engine,
    read_rows,
    recheck,
    run_missing,
    run_stage,
    shard_counts,
    shard_targets,
)
from .construction.source_scan import Scan, scan_source, write_rejected
from .construction.sources import find_shards
from .construction.stages.captioning import CaptionOptions, caption_shard
from .construction.stages.crop import crop_shard
from .construction.stages.duplicates import dedup_shard, find_duplicates
from .construction.stages.quality import assess_shard
from .construction.stages.select_urls import select_shard, unique_urls
from .construction.work_lock import work_lock
from .files import write_json
from .findings import DataError
from .release import ReleaseSettings, release
from .release_card import Made
from .removed import NAME as REMOVED
from .removed import read_removed, removed_beside, write_removed

_LOOKED_AT = 32  # images that tell how much disk all of them need
_DOWNLOAD = """The images are not there yet: {source}. Download them, then give this command again:
  pip install img2dataset
  img2dataset --url_list {urls} --input_format parquet --url_col url --save_additional_columns '["id"]' \\
    --output_format webdataset --output_folder {source} --resize_mode no --compute_hash sha256
"""


def build(config: BuildConfig, dry_run: bool = False, engine: str | None = None) -> dict[str, dict[str, int]]:
    """Run every stage that the configuration names.

    Args:
        config: of the construction.
        dry_run: check everything, print what the stages would take, and stop.
        engine: one of `ENGINES`; without it, processes of this machine do the work.

    Returns:
        The counts of each stage, by the stage's name; also written to `work/counts.json`.

    Raises:
        `DataError`: an input or an option that cannot be used, or another build in `work`. Finished shards stay.
    """
    with work_lock(config.work), on_engine(_open_engine(config, engine) if engine else None):
        return _run_stages(config.resolved(), dry_run)


def _open_engine(config: BuildConfig, kind: str) -> Engine:
    from .construction.engines import DatatroveEngine  # datatrove is there only for those who ask for it

    return DatatroveEngine(kind, config.work, config.num_workers, config.engine)


def _run_stages(config: BuildConfig, dry_run: bool) -> dict[str, dict[str, int]]:
    check_files(config)
    if config.release:
        _released_before(config, config.release)
    opt_out = OptOut.from_file(config.opt_out) if config.opt_out else OptOut()
    counts: dict[str, dict[str, int]] = {}

    def place(name: str) -> str:
        return os.path.join(config.work, name)

    def run(
        name: str, stage: Stage, sources: list[str], options: Any, sizes: Mapping[str, int] | None = None
    ) -> list[str]:
        folder = place(name)
        counts[name] = run_stage(stage, sources, folder, options, config.num_workers, opt_out, sizes)
        _report(name, counts[name])
        write_json(place("counts.json"), counts)
        return [os.path.join(folder, os.path.splitext(os.path.basename(source))[0] + ".parquet") for source in sources]

    if config.select and not (dry_run and os.path.isdir(config.source)):
        metadata = _parquets(config.select.metadata)
        if dry_run:
            raise DataError(f"{config.source}: not downloaded yet, so nothing can be estimated; run without --dry_run")
        selected = run("0_select", select_shard, metadata, config.select)
        counts["0_urls"] = unique_urls(selected, place("0_urls"), config.select, config.num_workers)
        _report("0_urls", counts["0_urls"])
        write_json(place("counts.json"), counts)
        if not os.path.isdir(config.source):
            sys.stdout.write(_DOWNLOAD.format(source=config.source, urls=place("0_urls")))
            return counts
    sources, unfinished = find_shards(config.source, place("0_lists"))
    if unfinished:
        names = ", ".join(os.path.basename(path) for path in unfinished[:5])
        sys.stdout.write(f"{len(unfinished)} shards that img2dataset has not finished are left out: {names}\n")
    scan = scan_source(config.source, sources, config.work, config.on_bad_shard, config.num_workers)
    counts["0_source"] = scan.counts
    _report("0_source", scan.counts)
    estimates = _check_ahead(config, scan, dry_run)
    if dry_run:
        sys.stdout.write(describe(estimates, scan.counts["rows_out"], min(SAMPLE, scan.counts["rows_out"])))
        return counts
    every_shard, sources = sources, scan.shards
    shards = run("1_crop", crop_shard, sources, config.crop, scan.sizes)
    if opt_out:
        rejected = place(os.path.join("1_crop", "rejected_boxes"))
        recheck(sorted(glob(os.path.join(escape(rejected), "*.parquet"))), rejected, opt_out, config.num_workers)
    add_up_hosts(place(os.path.join("1_crop", "hosts")), place("hosts.parquet"))
    write_rejected(config.source, every_shard, place("1_crop"), place("rejected.parquet"))
    find_duplicates(shards, config.dedup, config.num_workers)
    shards = run("2_dedup", dedup_shard, shards, config.dedup)
    if config.caption:
        shards = run("3_caption", caption_shard, shards, config.caption)
        counts["3_caption"] |= _report_cost(config.caption, place("3_caption"))
        write_json(place("counts.json"), counts)
    if config.quality:
        if config.quality.max_same_caption:
            find_repeated(shards, config.quality.plan, config.quality.max_same_caption, config.num_workers)
        captioned, shards = shards, run("4_quality", assess_shard, shards, config.quality)
        stage_statistics(config.work, "caption", captioned, config.num_workers)
        stage_statistics(config.work, "quality", shards, config.num_workers)
        page = place("report.html")
        if os.path.exists(page):
            os.remove(page)  # it may show somebody who has opted out since
        run_missing(write_report, [(config.work, page)], None, 1, "report")
    if config.release:
        removed = _removed(config, config.release, opt_out)
        made = describe_run(config, counts, os.path.splitext(sources[0])[1])
        counts["release"] = _release(config, config.release, shards, made, removed)
        _report("release", counts["release"])
        write_json(place("counts.json"), counts)
    return counts


def _check_ahead(config: BuildConfig, scan: Scan, dry_run: bool) -> dict[str, StageEstimate]:
    """Check servers, models and the disk, as far as there is work left for them."""

    def left(name: str) -> int:
        targets = shard_targets(scan.shards, os.path.join(config.work, name)).items()
        return sum(scan.sizes[source] for source, target in targets if not os.path.exists(target))

    if not scan.shards:
        raise DataError(f"{config.source}: none of its files can be used; see {config.work}/scan, or check `source`")
    images = sum(scan.sizes.values())
    if config.caption and (dry_run or left("3_caption")):
        check_captioners(config.caption)
    if dry_run or left("1_crop"):
        check_nsfw_model(config)
    if dry_run or left("2_dedup"):
        check_embedder(config)
    if config.quality and (dry_run or left("4_quality")):
        check_quality_model(config)
    if dry_run:
        return estimate(config, scan.shards, scan.counts["rows_out"], SAMPLE, crop_shard, caption_shard, assess_shard)
    if not left("1_crop"):
        return {}
    estimates = estimate(config, scan.shards, scan.counts["rows_out"], _LOOKED_AT, crop_shard)
    if config.num_workers > 1:
        forget_models()
    check_disk(config.work, sum(part.bytes for part in estimates.values()) * left("1_crop") // max(images, 1))
    return estimates


def _parquets(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; `select.metadata` is the folder of COYO's parquet files")
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".parquet"))
    if not files:
        raise DataError(f"{folder}: no parquet in it; `select.metadata` is the folder of COYO's parquet files")
    return files


def _report(name: str, counts: dict[str, int]) -> None:
    reasons = sorted((key, value) for key, value in counts.items() if key not in ("rows_in", "rows_out") and value)
    named = ", ".join(f"{key} {value:,}" for key, value in reasons)
    ending = f" ({named})" if named else ""
    sys.stdout.write(f"{name}: {counts['rows_in']:,} in, {counts['rows_out']:,} out{ending}\n")


def _report_cost(options: CaptionOptions, folder: str) -> dict[str, int]:
    """What the captions have cost over all runs."""
    spent = tokens_spent(options.cache_folder(folder))
    read, written = (sum(spent[f"{name}{number}"] for number in (1, 2)) for name in TOKENS)
    cost = options.cost(spent)
    dollars = f", ${cost:,.2f}" if cost else ""
    sys.stdout.write(f"3_caption: {read:,} tokens read, {written:,} written{dollars}, over all runs\n")
    return dict(spent)


def _removed(config: BuildConfig, options: ReleaseSection, opt_out: OptOut) -> dict[str, str]:
    """The pictures that this work once released and the opt-out list names now; kept in `work` for all releases."""
    path = os.path.join(config.work, REMOVED)
    removed = read_removed(removed_beside(config.work))
    before = _released_before(config, options)
    if opt_out and before and os.path.isdir(before["out"]):
        for shard in sorted(glob(os.path.join(escape(before["out"]), "data", "*.parquet"))):
            names = ["url", "source_sha256", "image_sha256", "source_phash", "phash"]
            for row in read_rows(shard, [name for name in names if name in pq.read_schema(shard).names]):
                hashes = (row["source_sha256"], row["image_sha256"]), (row.get("source_phash"), row["phash"])
                if reason := opt_out.excludes(row["url"], *hashes):
                    removed[row["image_sha256"]] = f"opted_out_{reason}"
    write_removed(path, removed)
    return removed


def _release(
    config: BuildConfig, options: ReleaseSection, shards: list[str], made: Made, removed: dict[str, str]
) -> dict[str, int]:
    """Release the assessed shards, once. A release that this work made earlier, from other rows, is replaced."""
    out, record = os.path.abspath(options.out), _record(config)
    before = _released_before(config, options)
    state = {
        "out": out,
        "rows": _digest(shards),
        "options": dataclasses.asdict(options),
        "made": [made.text, *made.not_in_it],
        "removed": sorted(removed),
    }

    if before != state:
        if before is not None and before["out"] == out:
            # Rows were opted out, or options changed: the old release goes first, so that nobody finds it meanwhile.
            # Until it is gone the record holds only its owner, so that half a release never passes for a whole one.
            write_json(record, {"out": out})
            for ending in ("", "-script", "-report", ".partial"):
                shutil.rmtree(out + ending, ignore_errors=True)
        write_json(record, state)

    if os.path.isdir(out):
        # A release is moved here last, so it is whole; an interrupted run may have left its working folder behind.
        shutil.rmtree(out + ".partial", ignore_errors=True)
    else:
        settings = options.settings(config.num_workers, made, removed)
        # The card comes into its place together with all the rest, and last.
        run_missing(
            _release_rows, [(os.path.dirname(shards[0]), os.path.join(out, "README.md"))], settings, 1, "release"
        )

    with open(os.path.join(out + "-report", "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    return {"rows_in": report["rows"]["read"], "rows_out": report["rows"].get("kept", 0), **report["left_out"]}


def _release_rows(source: str, target: str, settings: ReleaseSettings) -> None:
    release(source, os.path.dirname(target), settings)


def _record(config: BuildConfig) -> str:
    """The file that says what this work released last, and where."""
    return os.path.join(config.work, "release.json")


def _released_before(config: BuildConfig, options: ReleaseSection) -> dict[str, Any] | None:
    """What this work released last. Raises `DataError` if somebody else's folder is in the way."""
    out, before = os.path.abspath(options.out), None
    if os.path.exists(_record(config)):
        with open(_record(config), encoding="utf-8") as file:
            before = json.load(file)
    if os.path.lexists(out) and (before is None or before["out"] != out):
        raise DataError(f"{out}: exists already and was not made by {config.work}; delete it, or change `release.out`")
    return before


def _digest(shards: list[str]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{os.path.basename(shard)} {os.path.getsize(shard)} {shard_counts(shard)}".encode())
    return digest.hexdigest()


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python -m dataset_webperson.build", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="see `dataset_webperson/construction/config.py`")
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything and print what each stage would take, from a sample"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="let datatrove's executor do the work; the section `engine` says what it asks for",
    )
    args = parser.parse_args(arguments)
    build(read_config(args.config), args.dry_run, args.engine)


if __name__ == "__main__":
    sys.exit(main())
