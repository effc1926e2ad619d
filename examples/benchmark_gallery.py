"""Time a gallery: building, opening, searching, adding and removing, beside faiss and a plain matrix product.

    python examples/benchmark_gallery.py --rows 20000
    python examples/benchmark_gallery.py --rows 300000 --output_file runs/gallery.md     # half an hour

Rows are jittered embeddings of drawings by the shipped small CLIP, turned into a space of 512 dimensions; queries are
captions. Searching runs in a process of its own. Recall is that of the ten best images against exact search. Building
is timed by a model of the paper's size, beside the bare model on pixels that are ready.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from gallery_benchmark.inputs import drawings, jittered, paper_size_model, save_images, small_model, widened
from gallery_benchmark.queries import measure_queries
from tqdm.auto import tqdm

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import file_size, write_text
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.models import Encoder
from modeling_gadms.gallery.rows import Rows

KINDS = ("text", "stored", "filter 10 %", "filter 1 %", "exact")


def rates(encoder: Encoder, images: list, folder: Path) -> tuple[float, float]:
    """Images a CPU second of the bare model on pixels that are ready, and of a gallery on a folder of files."""
    pixels = encoder.processor(images=images, return_tensors="pt")["pixel_values"].split(32)
    encoder.pixels(pixels[0])
    start = time.process_time()
    for batch in pixels:
        encoder.pixels(batch)
    bare = len(images) / (time.process_time() - start)
    save_images(images, folder / "images")
    gallery = Gallery.create(folder / "built", (encoder.model, encoder.processor))
    start = time.process_time()
    gallery.add(folder / "images")
    return bare, len(images) / (time.process_time() - start)


def fill(rows: Rows, base: np.ndarray, count: int, name: str = "row") -> None:
    """Jittered rows, with a column `camera` from 0 to 99."""
    rows.add_columns({"camera": "number"})
    first = 0
    for vectors in tqdm(jittered(base, count), desc="Writing rows", leave=False, disable=None):
        records = [
            {"id": f"{name}{number:028x}", "uri": str(number), "source": "", "sha256": "0" * 64, "phash": 0}
            | {"file_size": 0, "file_time": 0, "camera": number * 37 % 100}
            for number in range(first, first + len(vectors))
        ]
        rows.append(rows.as_table(records, vectors))
        first += len(vectors)


def others(base: np.ndarray, count: int, queries: np.ndarray) -> dict[str, float]:
    """ms a query of faiss's flat float16 index, and of torch's product with all vectors in float32."""
    index = faiss.IndexScalarQuantizer(base.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    whole = np.concatenate(list(jittered(base, count)))
    for first in range(0, count, 50_000):
        index.add(whole[first : first + 50_000].astype(np.float32))
    found, vectors = {}, torch.from_numpy(whole)
    ways = {
        "faiss flat float16": lambda query: index.search(query[None], 10),
        "torch, blocks of float32": lambda query: torch.cat(
            [part.float() @ torch.from_numpy(query) for part in vectors.split(8192)]
        ).topk(10),
    }
    for name, search in ways.items():
        times = []
        for query in queries[:20].astype(np.float32):
            start = time.perf_counter()
            search(query)
            times.append(1000 * (time.perf_counter() - start))
        found[name] = float(np.median(times))
    return found


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the gallery (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="drawings that are embedded (default: %(default)s)")
    parser.add_argument("--num_built", type=int, default=32, help="of these by a model of the paper's size")
    parser.add_argument("--num_queries", type=int, default=200, help="captions (default: %(default)s)")
    parser.add_argument("--output_file", help="where to write the table too")
    args = parser.parse_args(arguments)
    if min(args.rows, args.images, args.num_queries) < 20:
        parser.error("--rows, --images and --num_queries must be at least 20")
    encoder, drawn = small_model(), drawings(args.images)
    images = list(drawn["image"])
    base, queries = widened(encoder.images(images)), widened(encoder.texts(drawn["caption1"][: args.num_queries]))
    with tempfile.TemporaryDirectory() as folder:
        bare, built = rates(paper_size_model(), images[: args.num_built], Path(folder))
        place = str(Path(folder) / "rows")
        rows = Rows.create(place, "rows", base.shape[1], "float16")
        start = time.perf_counter()
        fill(rows, base, args.rows)
        written = time.perf_counter() - start
        start, cpu = time.perf_counter(), time.process_time()
        rows.tidy()
        tidied, tidied_cpu = time.perf_counter() - start, time.process_time() - cpu
        rows.purge()
        indexed = rows.index_facts() is not None
        disk = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure_queries, (place, queries))
        start = time.perf_counter()
        fill(rows, base, 1000, "more")
        added = time.perf_counter() - start
        start = time.perf_counter()
        rows.delete("`id` like 'more%'")
        removed = time.perf_counter() - start
    beside = others(base, args.rows, queries)
    float32 = args.rows * base.shape[1] * 4
    lines = [
        f"`python examples/benchmark_gallery.py --rows {args.rows}`: {args.rows:,} rows x {base.shape[1]}, "
        f"{torch.get_num_threads()} threads\n",
        f"- building at the paper's size: {built:.2f} images a CPU second, the model {bare:.2f} ({built / bare:.0%})",
        f"- rows written in {written:.1f} s; "
        + (f"index in {tidied:.0f} s, {tidied_cpu:.0f} CPU s" if indexed else "no index: exact"),
        f"- disk {file_size(disk)}; memory of a searching process {found['memory_mb']:.0f} MB, "
        f"{found['memory_mb'] * 1e6 / float32:.0%} of the vectors in float32",
        f"- open {found['open_s']:.2f} s; 1,000 rows added in {added:.2f} s, removed in {removed:.2f} s\n",
        "| query | p50 ms | p99 ms | CPU ms | recall@10 |",
        "|---|---|---|---|---|",
    ]
    for name in KINDS:
        cells = [f"{found[f'{name} {what}']:.1f}" for what in ("p50", "p99", "cpu")]
        lines.append(f"| {name} | {' | '.join(cells)} | {found.get(f'{name} recall', 1):.3f} |")
    lines += [f"| {name} | {value:.1f} | | | |" for name, value in beside.items()]
    print("\n".join(lines))
    if args.output_file:
        write_text(args.output_file, "\n".join(lines) + "\n")
        write_text(
            f"{args.output_file}.json", json.dumps({**found, **beside, "rate": built, "bare_rate": bare}, indent=2)
        )


if __name__ == "__main__":
    sys.exit(main())
