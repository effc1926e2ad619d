"""python examples/benchmark_layouts.py

How fast parquet of several shard and row-group sizes, and tars of the same rows, are read with a shuffle buffer.
Images stay undecoded: decoding costs the same in any layout. Figures as in benchmark_loading.py.
"""

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable

import datasets
from benchmark_loading import BATCH, BUFFER, best, make_release, make_source

from dataset_webperson.release import Layout
from dataset_webperson.rows.local_source import open_source
from dataset_webperson.rows.streaming import ShuffledParquet

LAYOUTS = ((1_000_000, 1_000_000), (1_000_000, 100), (250, 250), (250, 100), (250, 10))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        print(layouts(make_source(f"{folder}/source", args.rows), folder, args.rounds))


def layouts(source: str, folder: str, rounds: int) -> str:
    rows = len(os.listdir(f"{source}/images"))
    readers: dict[str, Callable[[], Iterable]] = {}
    first = {}
    for number, (per_shard, group) in enumerate(LAYOUTS):
        layout = Layout(per_shard, group)
        place = make_release(source, f"{folder}/layout-{number}", layout)
        per_shard, group = min(per_shard, rows), min(group, rows)
        readers[f"parquet | {per_shard:,} | {group:,}"] = lambda place=place: datasets.load_dataset(
            place, split="train", streaming=True
        )
        readers[f"parquet, `ShuffledParquet` | {per_shard:,} | {group:,}"] = lambda place=place: ShuffledParquet(
            place, batch_size=BATCH, decode=False
        )
    tars = write_tars(source, f"{folder}/tars", 500)
    readers["tar | 500 | "] = lambda: datasets.load_dataset(
        "webdataset", data_files=tars, split="train", streaming=True
    )

    def undecoded(open_reader):
        data = open_reader()
        if isinstance(data, ShuffledParquet):
            return (data[key] for key in data.order(0))
        image = "jpg" if "jpg" in data.column_names else "image"
        data = data.cast_column(image, datasets.Image(decode=False)).shuffle(seed=0, buffer_size=BUFFER)
        return iter(data)

    for name, open_reader in readers.items():
        times = []
        for _ in range(rounds):
            start = time.process_time()
            next(iter(undecoded(open_reader)))
            times.append(time.process_time() - start)
        first[name] = min(times)
    found = best({name: lambda reader=reader: undecoded(reader) for name, reader in readers.items()}, rows, rounds)
    lines = [
        f"| {name} | {rate:,.0f} | {cpu:,.0f} | {1000 * first[name]:,.0f} |" for name, (rate, cpu) in found.items()
    ]
    size = sum(entry.stat().st_size for entry in os.scandir(f"{source}/images")) / rows / 1000
    head = f"{rows:,} rows of {size:.0f} kB, shuffle buffer {BUFFER:,}, not decoded, best of {rounds} rounds\n"
    titles = "| read as | rows a shard | rows a group | rows/s | rows a CPU second | CPU ms to the first row |"
    titles += "\n|---|---|---|---|---|---|"
    return "\n".join([head, titles, *lines])


def write_tars(source: str, folder: str, rows_per_tar: int) -> list[str]:
    os.makedirs(folder)
    rows = [row for row in open_source(source).rows(f"{source}/list.json")]
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
    main()
