"""What a construction will take, from a sample of its images that goes through the stages for real."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

from ..files import file_size, write_json
from ..rows.joined_parquet import without_images
from .captions.cache import tokens_spent
from .config import BuildConfig
from .shards import Stage, read_rows, shard_counts, shard_writer
from .sources import read_images

SAMPLE, CAPTIONED = 200, 16
_SHARDS = 20  # of which the sample is taken
_COMPARED, _RELEASED = 40_000, 2_000  # rows per second, as measured on two cores


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes for all images: rows in and out, seconds, dollars, tokens and bytes."""

    rows_in: int
    rows_out: int
    seconds: float
    bytes: int
    tokens: int = 0
    dollars: float = 0.0


@contextmanager
def sampled(shards: list[str], work: str, count: int) -> Iterator[tuple[str, str]]:
    """`(list, folder)`: a list of up to `count` images of a source, and a folder that is removed at the end."""
    folder = os.path.join(work, "sample")
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    os.makedirs(os.path.join(folder, "images"))
    try:
        chosen = shards[:: max(1, len(shards) // _SHARDS)][:_SHARDS]
        names: list[str] = []
        for place, shard in enumerate(chosen):
            images = (image.data for image in read_images(shard) if image.data)
            for data in islice(images, -(-(count - len(names)) // (len(chosen) - place))):
                names.append(f"{len(names):06d}")
                with open(os.path.join(folder, "images", names[-1]), "wb") as file:
                    file.write(data)
        path = os.path.join(folder, "sample.json")
        write_json(path, {"root": os.path.realpath(os.path.join(folder, "images")), "images": names})
        yield path, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def estimate(
    config: BuildConfig,
    shards: list[str],
    images: int,
    count: int,
    crop: Stage,
    caption: Stage | None = None,
    quality: Stage | None = None,
) -> dict[str, StageEstimate]:
    """Let a sample go through the stages, and multiply.

    Args:
        config: of the construction.
        shards: of its source.
        images: their number in all shards.
        count: of images in the sample; captions are asked for of `CAPTIONED` persons in it.
        crop, caption, quality: the stages. Without `caption` only crops are made, and later stages counted as large.

    Returns:
        The estimates by name of the stage. No near-duplicates are assumed: it is the most that the later ones take.
    """
    found: dict[str, StageEstimate] = {}
    with sampled(shards, config.work, count) as (source, folder):

        def run(name: str, stage: Stage, options: object, path: str, rows: int) -> tuple[str, float]:
            target = os.path.join(folder, name, "sample.parquet")
            began = time.monotonic()
            counts = stage(path, target, options)
            scale = rows / max(counts["rows_in"], 1)
            seconds = (time.monotonic() - began) * scale / config.num_workers
            size = round(os.path.getsize(target) * scale)
            found[name] = StageEstimate(rows, round(counts["rows_out"] * scale), seconds, size)
            return target, scale

        # Once without the clock: loading the models is no part of the rate.
        crop(_first_image(source), os.path.join(folder, "warm", "sample.parquet"), config.crop)
        path, _ = run("1_crop", crop, config.crop, source, images)
        rows, size = found["1_crop"].rows_out, found["1_crop"].bytes
        few = _first_rows(path, os.path.join(folder, "2_dedup", "sample.parquet"))
        # Without the images, which stay where they are.
        small = round(os.path.getsize(few) * rows / max(shard_counts(few)["rows_out"], 1))
        found["2_dedup"] = StageEstimate(rows, rows, rows / _COMPARED, small)
        if config.caption and caption and rows:
            cache = os.path.join(folder, "caption_cache")
            path, scale = run("3_caption", caption, replace(config.caption, cache=cache), few, rows)
            spent = {name: round(tokens * scale) for name, tokens in tokens_spent(cache).items()}
            dollars = config.caption.cost(spent)
            found["3_caption"] = replace(found["3_caption"], tokens=sum(spent.values()), dollars=dollars)
            if config.quality and quality:
                run("4_quality", quality, replace(config.quality, plan=""), path, rows)
        for name, section in (("3_caption", config.caption), ("4_quality", config.quality)):
            if section and name not in found:
                found[name] = StageEstimate(rows, rows, 0.0, 2 * small)  # with two captions and what is in them
        if config.release:
            last = list(found.values())[-1]
            written = round(size * last.rows_out / max(rows, 1)) + last.bytes
            found["release"] = StageEstimate(last.rows_out, last.rows_out, last.rows_out / _RELEASED, written)
    return found


def _first_image(source: str) -> str:
    with open(source, encoding="utf-8") as file:
        content = json.load(file)
    path = os.path.join(os.path.dirname(source), "first.json")
    write_json(path, content | {"images": content["images"][:1]})
    return path


def _first_rows(source: str, target: str) -> str:
    schema = without_images(source, target)
    with shard_writer(target, schema) as shard:
        for row in islice(read_rows(source, schema.names), CAPTIONED):
            shard.write(row)
    return target


def describe(found: dict[str, StageEstimate], images: int, sample: int) -> str:
    """The estimates as a table for the terminal."""
    lines = [f"{'stage':<10} {'in':>13} {'out':>13} {'time':>10} {'disk':>10} {'tokens':>15} {'cost':>12}"]
    for name, part in found.items():
        tokens, cost = (f"{part.tokens:,}", f"${part.dollars:,.2f}") if part.tokens else ("", "")
        lines.append(
            f"{name:<10} {part.rows_in:>13,} {part.rows_out:>13,} {_duration(part.seconds):>10} "
            f"{file_size(part.bytes):>10} {tokens:>15} {cost:>12}"
        )
    seconds, size = sum(part.seconds for part in found.values()), sum(part.bytes for part in found.values())
    lines.append(
        f"{_duration(seconds)} and {file_size(size)} in all for {images:,} images, from a sample of {sample:,}. "
        f"Captions were asked for of at most {CAPTIONED} persons. Near-duplicates are not estimated: later stages may "
        "get fewer rows."
    )
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    return f"{minutes} min" if minutes < 90 else f"{hours} h" if hours < 48 else f"{round(hours / 24)} days"
