"""Rows/s of the loaders beside a bare loop over the same bytes.

    python examples/benchmark_loading.py

The bare loop decodes JPEGs held in memory and resizes them to 384 x 128; the loaders also find them, read them from
disk, shuffle, and hand rows on. The Trainer's batches hold captions and random numbers too, and pixels that are
normalised and augmented, or bytes that will be so on the device. Rounds alternate; rates are the best of theirs, and
shares the median over rounds of the rate beside the bare loop of the same round. On a machine that others use too,
compare rows per CPU second. A shuffled stream of `datasets` rests for 5 seconds where its files end: that is in the
wall time of a pass, however short, and not in its CPU time; one line is without it. A cache holds the same rows with
images that are 384 x 128 already (`python -m dataset_webperson.release --cache_size 384 128`). The bare loop in a
worker hands batches over as torch does by itself, the others in memory that they fill again (`SharedBatches`).

`--data_root` takes a folder that `python -m dataset_webperson.release` wrote, and `--cache_root` a cache of it; by
default the benchmark makes up pictures the size of person crops, and both.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from itertools import islice

import datasets
import numpy as np
import PIL
import torch
from loading_benchmark.by_worker import in_one_worker, resize
from loading_benchmark.collated import collated
from loading_benchmark.inputs import make_cache, make_release, make_source, restless
from loading_benchmark.timing import timed
from PIL import Image

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.release_shards import Layout
from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.training.image_decoding import has_torchcodec

BATCH, BUFFER = 64, 1000


def parse_counts(parser: CommandParser, arguments: list[str] | None, rows: int) -> argparse.Namespace:
    """The command line with `--rows` and `--rounds`, both at least 1."""
    parser.add_argument("--rows", type=int, default=rows, help="rows to read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.rows < 1 or args.rounds < 1:
        parser.error("--rows and --rounds must be at least 1")
    return args


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, renamed={"--data": "--data_root"})
    parser.add_argument("--data_root", help="folder of a release (default: made-up pictures)")
    parser.add_argument("--cache_root", help="folder of a cache of that release (default: made of made-up pictures)")
    args = parse_counts(parser, arguments, rows=2000)
    if bool(args.data_root) != bool(args.cache_root):
        parser.error("--data_root and --cache_root go together: give both, or neither")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_root or make_release(make_source(f"{folder}/source", args.rows), f"{folder}/out", Layout())
        cache = args.cache_root or make_cache(data, f"{folder}/cache")
        print(loaders(data, cache, args.rows, args.rounds))


def loaders(data: str, cache: str, rows: int, rounds: int) -> str:
    load = os.getloadavg()[0]  # of what else runs here, before the benchmark adds to it
    stream = ShuffledParquet(data, batch_size=BATCH)
    raw = ShuffledParquet(data, batch_size=BATCH, decode=False)
    count = min(rows, len(stream))
    jpegs = [raw[0, position]["image"]["bytes"] for position in range(count)]
    small_stream = ShuffledParquet(cache, batch_size=BATCH)
    small_jpegs = [row["image"]["bytes"] for row in ShuffledParquet(cache, decode=False).take(count)]
    keys = [(0, position) for position in range(count)]
    shuffled = datasets.load_dataset(data, split="train", streaming=True).shuffle(seed=0, buffer_size=BUFFER)
    found = timed(
        {
            "bare loop, JPEGs in memory": lambda: (
                resize(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs
            ),
            "`ShuffledParquet`": lambda: (resize(stream[key]["image"]) for key in keys),
            **in_one_worker(jpegs, stream, BATCH, count),
            "`ShuffledParquet.iterable`": lambda: (resize(row["image"]) for row in islice(stream.iterable(0), count)),
            f"`load_dataset(streaming=True).shuffle({BUFFER})`": lambda: (
                resize(row["image"]) for row in islice(shuffled, count)
            ),
            "the same without its rest": lambda: (resize(row["image"]) for row in islice(restless(shuffled), count)),
            **collated(stream, BATCH, count),
            "bare loop, a cache's JPEGs in memory": lambda: (
                np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in small_jpegs
            ),
            **{f"from a cache: {name}": read for name, read in collated(small_stream, BATCH, count).items()},
        },
        count,
        rounds,
    )
    bare = next(iter(found.values()))
    lines = []
    for name, rates in found.items():
        cells = []
        for mine, beside in zip(zip(*rates, strict=True), zip(*bare, strict=True), strict=True):  # wall time, CPU time
            share = statistics.median(rate / other for rate, other in zip(mine, beside, strict=True))
            cells.append(f"{max(mine):,.0f} | {100 * share:.0f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    size = sum(map(len, jpegs)) / count / 1000
    head = f"{count:,} JPEGs of {size:.0f} kB, {rounds} rounds, one process; {circumstances(load)}\n"
    titles = "| | rows/s | of the bare loop | rows per CPU second | of the bare loop |\n|---|---|---|---|---|"
    return "\n".join([head, titles, *lines])


def circumstances(load: float) -> str:
    """What the figures also depend on: the load of the machine before, and the versions of what decodes."""
    codec = f"torchcodec {version('torchcodec')}" if has_torchcodec() else "no torchcodec"
    machine = f"{os.cpu_count()} cores with a load of {load:.1f} before it began"
    return f"{machine}; torch {torch.__version__}, {codec}, Pillow {PIL.__version__}"


if __name__ == "__main__":
    sys.exit(main())
