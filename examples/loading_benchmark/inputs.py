"""Inputs of the loading benchmarks: made-up pictures, as a source and as a release, and streams of them."""

import json
import os
from collections.abc import Iterator

import datasets
import numpy as np

from dataset_webperson.release import ReleaseSettings, release
from dataset_webperson.release_shards import Layout
from dataset_webperson.rows.preparation import RowOptions

from .pictures import picture


def make_source(folder: str, rows: int) -> str:
    """Make up pictures the size of person crops, and their list."""
    os.makedirs(f"{folder}/images")
    generator = np.random.default_rng(0)
    entries = []
    for number in range(rows):
        picture(generator).save(f"{folder}/images/{number:06d}.jpg", quality=85)
        caption = "A person in a red coat and black trousers walks with a brown bag over the left shoulder. " * 2
        entries.append({f"{number:06d}.jpg": {"caption1": caption, "caption2": caption}})
    with open(f"{folder}/list.json", "w") as file:
        json.dump(entries, file)
    return folder


def make_release(source: str, out: str, layout: Layout) -> str:
    release(source, out, ReleaseSettings(contact="benchmark@example.org", layout=layout))
    return out


def make_cache(release_folder: str, out: str) -> str:
    """A cache of a release, of the size that the benchmark resizes to."""
    options = RowOptions(only_jpeg=True, cache_size=(384, 128))
    release(release_folder, out, ReleaseSettings(contact="benchmark@example.org", rows=options))
    return out


def restless(rows: datasets.IterableDataset) -> Iterator[dict]:
    """Rows without the rest at the end of the files, which the card of a release tells how to take away."""
    rest, datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN, 0
    try:
        yield from rows
    finally:
        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = rest
