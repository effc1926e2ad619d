"""Time a gallery: building, opening, searching, adding and removing, beside faiss and a plain matrix product.

    python examples/benchmark_gallery.py --rows 20000
    python examples/benchmark_gallery.py --rows 20000 300000 1000000 --output_file runs/gallery.md    # an hour

Rows are jittered embeddings of drawings by the shipped small CLIP, turned into a space of 512 dimensions; queries are
captions, and stored vectors. Searching runs in a process of its own. Recall is that of the ten best rows against a
comparison of all of them in float32. Building is timed by a model of the paper's size, beside the bare model on pixels
that are ready, in turn.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gallery_benchmark.beside import measure_others, right_rows
from gallery_benchmark.building import MORE, measure_building, measure_changes, measure_rates
from gallery_benchmark.inputs import drawings, jittered, paper_size_model, small_model, widened
from gallery_benchmark.queries import FILTERS, measure_queries

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_text
from modeling_gadms.gallery.rows import INDEXES

SEARCHES = {
    "text": "captions",
    "stored": "stored vectors",
    "filter 10 %": "captions, filter of 10 %",
    "filter 1 %": "captions, filter of 1 %",
    "exact": "captions, exact",
    "faiss flat": "faiss flat, float16, mapped",
    "torch blocks": "torch, exact, blocks of float32",
}


def measure(vectors: np.ndarray, captions: np.ndarray, index: str) -> dict[str, float]:
    """All figures of a gallery of `vectors` `(rows, dimension)`."""
    stored = vectors[: len(captions)].astype(np.float64)
    queries = {name: stored if name == "stored" else captions for name in FILTERS}
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "rows")
        found = measure_building(place, vectors, index)
        found |= measure_others(vectors, captions, Path(folder))
        right = right_rows(vectors, queries)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found |= pool.apply(measure_queries, (place, queries, right))
        found |= measure_changes(place, vectors[:MORE])
    float32 = vectors.size * 4 / 1e6
    return {**found, "memory_share": found["memory own"] / float32, "load": os.getloadavg()[0]}


def table(measured: list[dict[str, float]]) -> list[str]:
    """Lines of a table with a column for each size."""

    def line(name: str, cells: list[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    lines = [line("rows", [f"{found['rows']:,}" for found in measured]), "|---" * (len(measured) + 1) + "|"]
    facts = {
        "rows written, s": "{write_s:.1f}",
        "indexed, s (CPU s)": "{index_s:.0f} ({index_cpu_s:.0f})",
        "disk, MB": "{disk_mb:,.0f}",
        "memory of a searching process, MB": "{memory own:,.0f}",
        "... of the vectors in float32": "{memory_share:.0%}",
        "... with mapped files and libraries, MB": "{memory all:,.0f}",
        "open, s": "{open_s:.2f}",
        "1,000 rows added / removed / off the disk, s": "{add_s:.2f} / {remove_s:.2f} / {purge_s:.1f}",
    }
    for name, text in facts.items():
        lines.append(line(name, [text.format_map(found) for found in measured]))
    for key, name in SEARCHES.items():
        times = [
            f"{found[f'{key} p50']:.1f} / {found[f'{key} p99']:.1f} / {found[f'{key} cpu']:.1f}" for found in measured
        ]
        lines.append(line(f"{name}: p50 / p99 / CPU, ms", times))
        if key in FILTERS:
            lines.append(line(f"{name}: recall@10", [f"{found[f'{key} recall']:.3f}" for found in measured]))
    return [*lines, line("load of the machine", [f"{found['load']:.0f}" for found in measured])]


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000], help="of the galleries (default: 20000)")
    parser.add_argument("--index", choices=INDEXES, default="compact", help="from a size on (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="drawings that are embedded (default: %(default)s)")
    parser.add_argument("--num_built", type=int, default=32, help="of these by a model of the paper's size")
    parser.add_argument("--num_queries", type=int, default=200, help="captions (default: %(default)s)")
    parser.add_argument("--output_file", help="where to write the table too, and the figures as <output_file>.json")
    args = parser.parse_args(arguments)
    if min(*args.rows, args.images, args.num_queries) < 20:
        parser.error("--rows, --images and --num_queries must be at least 20")
    encoder, drawn = small_model(), drawings(args.images)
    images = list(drawn["image"])
    base, captions = widened(encoder.images(images)), widened(encoder.texts(drawn["caption1"][: args.num_queries]))
    rates = measure_rates(paper_size_model(), images[: args.num_built])
    head = [
        f"`python examples/benchmark_gallery.py --rows {' '.join(map(str, args.rows))} --index {args.index}`: "
        f"{base.shape[1]} dimensions, {torch.get_num_threads()} threads, {os.cpu_count()} cores\n",
        f"Building at the paper's size: {rates['rate']:.2f} images per CPU second, the bare model "
        f"{rates['bare rate']:.2f} ({rates['rate'] / rates['bare rate']:.0%}).\n",
    ]
    print("\n".join(head))
    measured: list[dict[str, float]] = []
    for count in args.rows:
        measured.append(measure(np.concatenate(list(jittered(base, count))), captions, args.index))
        if args.output_file:  # after each: the next takes longer than all before it
            write_text(args.output_file, "\n".join([*head, *table(measured)]) + "\n")
            write_text(f"{args.output_file}.json", json.dumps({**rates, "galleries": measured}, indent=2) + "\n")
    print("\n".join(table(measured)))


if __name__ == "__main__":
    sys.exit(main())
