"""How fast parquet of several shard and row-group sizes, and tars of the same rows, are read with a shuffle buffer.

    python examples/benchmark_layouts.py

Images stay undecoded, for decoding costs the same in any layout. Figures are those of benchmark_loading.py.
"""

import functools
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
from benchmark_loading import BATCH, BUFFER, parse_counts
from loading_benchmark.inputs import make_release, make_source
from loading_benchmark.timing import timed

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.release_shards import Layout
from dataset_webperson.rows.local_source import open_source
from dataset_webperson.rows.streaming import ShuffledParquet

LAYOUTS = ((1_000_000, 1_000_000), (1_000_000, 100), (250, 250), (250, 100), (250, 10))


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse_counts(CommandParser(description=__doc__), arguments, rows=1000)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        print(layouts(make_source(f"{folder}/source", args.rows), folder, args.rounds))


def layouts(source: str, folder: str, rounds: int) -> str:
    """A Markdown table of every layout and reader."""
    rows = len(os.listdir(f"{source}/images"))
    readers = open_readers(source, folder, rows)
    first = {name: first_row_seconds(read, rounds) for name, read in readers.items()}
    lines = []
    for name, rates in timed(readers, rows, rounds).items():
        rate, cpu = map(max, zip(*rates, strict=True))
        lines.append(f"| {name} | {rate:,.0f} | {cpu:,.0f} | {1000 * first[name]:,.0f} |")
    size = sum(entry.stat().st_size for entry in os.scandir(f"{source}/images")) / rows / 1000
    head = f"{rows:,} rows of {size:.0f} kB, shuffle buffer {BUFFER:,}, not decoded, best of {rounds} rounds\n"
    titles = "| read as | rows per shard | rows per group | rows/s | rows per CPU second | CPU ms to the first row |"
    titles += "\n|---|---|---|---|---|---|"
    return "\n".join([head, titles, *lines])


def open_readers(source: str, folder: str, rows: int) -> dict[str, Callable[[], Iterator[Any]]]:
    """Write the rows in every layout; functions that read them, by the first columns of the table."""
    readers: dict[str, Callable[[], Iterator[Any]]] = {}
    for number, (per_shard, group) in enumerate(LAYOUTS):
        place = make_release(source, f"{folder}/layout-{number}", Layout(per_shard, group))
        shape = f"{min(per_shard, rows):,} | {min(group, rows):,}"
        readers[f"parquet | {shape}"] = functools.partial(stream, "image", path=place)
        readers[f"parquet, `ShuffledParquet` | {shape}"] = functools.partial(shuffled, place)
    tars = write_tars(source, f"{folder}/tars", 500)
    readers["tar | 500 | "] = functools.partial(stream, "jpg", path="webdataset", data_files=tars)
    return readers


def stream(image: str, **source: Any) -> Iterator[Any]:
    """Rows of `load_dataset(streaming=True)`, shuffled in its buffer and undecoded."""
    rows = datasets.load_dataset(**source, split="train", streaming=True)
    return iter(rows.cast_column(image, datasets.Image(decode=False)).shuffle(seed=0, buffer_size=BUFFER))


def shuffled(place: str) -> Iterator[Any]:
    """The same rows by [`ShuffledParquet`]."""
    rows = ShuffledParquet(place, batch_size=BATCH, decode=False)
    return (rows[key] for key in rows.order(0))


def first_row_seconds(read: Callable[[], Iterable], rounds: int) -> float:
    """CPU time to the first row, in the best round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        next(iter(read()))
        times.append(time.process_time() - start)
    return min(times)


def write_tars(source: str, folder: str, rows_per_tar: int) -> list[str]:
    """The rows as WebDataset tars, a JPEG and its captions each; returns their names."""
    os.makedirs(folder)
    rows = list(open_source(source).rows(f"{source}/list.json"))
    names = []
    for start in range(0, len(rows), rows_per_tar):
        names.append(f"{folder}/{start:06d}.tar")
        with tarfile.open(names[-1], "w") as tar:
            for row in rows[start : start + rows_per_tar]:
                text = json.dumps(dict(zip(("caption1", "caption2"), row.captions, strict=True))).encode()
                for ending, data in (("jpg", row.read()), ("json", text)):
                    member = tarfile.TarInfo(row.image_path.replace("jpg", ending))
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return names


if __name__ == "__main__":
    sys.exit(main())
