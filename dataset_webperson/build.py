"""Build a WebPerson from web images: select, crop, dedup, caption, quality and release, all described in one file.

    python -m dataset_webperson.build CONFIG.yaml

Each stage writes its shards below the folder that the file calls `work`. After an interruption, give the same command
again: only what is missing is made. With a section `select` and no images yet, it writes the list of addresses, says
how to download them with img2dataset, and stops.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from typing import Any

from .command_line import CommandParser, command
from .construction.caption_statistics import stage_statistics
from .construction.config import BuildConfig, ReleaseSection, read_config
from .construction.opt_out import OptOut
from .construction.shards import Stage, run_stage, shard_counts
from .construction.sources import find_shards
from .construction.stages.captioning import caption_shard
from .construction.stages.crop import crop_shard
from .construction.stages.duplicates import dedup_shard, find_duplicates
from .construction.stages.quality import assess_shard
from .construction.stages.select_urls import select_shard, unique_urls
from .construction.work_lock import work_lock
from .files import write_json
from .findings import DataError
from .release import release

_DOWNLOAD = """The images are not there yet: {source}. Download them, then give this command again:
  pip install img2dataset
  img2dataset --url_list {urls} --input_format parquet --url_col url --save_additional_columns '["id"]' \\
    --output_format webdataset --output_folder {source} --resize_mode no --compute_hash sha256
"""


def build(config: BuildConfig) -> dict[str, dict[str, int]]:
    """Run every stage that the configuration names.

    Returns:
        The counts of each stage, by the stage's name; also written to `work/counts.json`.

    Raises:
        `DataError`: an input or an option that cannot be used, or another build in `work`. Finished shards stay.
    """
    with work_lock(config.work):
        return _run_stages(config.resolved())


def _run_stages(config: BuildConfig) -> dict[str, dict[str, int]]:
    opt_out = OptOut.from_file(config.opt_out) if config.opt_out else OptOut()
    counts: dict[str, dict[str, int]] = {}

    def place(name: str) -> str:
        return os.path.join(config.work, name)

    def run(name: str, stage: Stage, sources: list[str], options: Any) -> list[str]:
        folder = place(name)
        counts[name] = run_stage(stage, sources, folder, options, config.num_workers, opt_out)
        _report(name, counts[name])
        write_json(place("counts.json"), counts)
        return [os.path.join(folder, os.path.splitext(os.path.basename(source))[0] + ".parquet") for source in sources]

    if config.select:
        metadata = _parquets(config.select.metadata)
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
    shards = run("1_crop", crop_shard, sources, config.crop)
    find_duplicates(shards, config.dedup, config.num_workers)
    shards = run("2_dedup", dedup_shard, shards, config.dedup)
    if config.caption:
        shards = run("3_caption", caption_shard, shards, config.caption)
    if config.quality:
        captioned, shards = shards, run("4_quality", assess_shard, shards, config.quality)
        # For the report, while there are processes to count them.
        stage_statistics(config.work, "caption", captioned, config.num_workers)
        stage_statistics(config.work, "quality", shards, config.num_workers)
    if config.release:
        counts["release"] = _release(config, config.release, os.path.dirname(shards[0]), shards)
        _report("release", counts["release"])
        write_json(place("counts.json"), counts)
    return counts


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


def _release(config: BuildConfig, options: ReleaseSection, folder: str, shards: list[str]) -> dict[str, int]:
    """Release the assessed shards, once. A release that this work made earlier, from other rows, is replaced."""
    out = os.path.abspath(options.out)
    state = {"out": out, "rows": _digest(shards), "options": dataclasses.asdict(options)}

    # The record says what this work released last, and where.
    record = os.path.join(config.work, "release.json")
    before = None
    if os.path.exists(record):
        with open(record, encoding="utf-8") as file:
            before = json.load(file)

    if before != state:
        if before is not None and before["out"] == out:
            # Rows were opted out, or options changed: the old release goes first, so that nobody finds it meanwhile.
            # Until it is gone the record holds only its owner, so that half a release never passes for a whole one.
            write_json(record, {"out": out})
            for ending in ("", "-script", "-report", ".partial"):
                shutil.rmtree(out + ending, ignore_errors=True)
        elif os.path.lexists(out):
            raise DataError(
                f"{out}: exists already and was not made by {config.work}; delete it, or change `release.out`"
            )
        write_json(record, state)

    if os.path.isdir(out):
        # A release is moved here last, so it is whole; an interrupted run may have left its working folder behind.
        shutil.rmtree(out + ".partial", ignore_errors=True)
    else:
        release(folder, out, options.settings(config.num_workers))

    with open(os.path.join(out + "-report", "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    return {"rows_in": report["rows"]["read"], "rows_out": report["rows"].get("kept", 0), **report["left_out"]}


def _digest(shards: list[str]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{os.path.basename(shard)} {os.path.getsize(shard)} {shard_counts(shard)}".encode())
    return digest.hexdigest()


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python -m dataset_webperson.build", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="see `dataset_webperson/construction/config.py`")
    build(read_config(parser.parse_args(arguments).config))


if __name__ == "__main__":
    sys.exit(main())
