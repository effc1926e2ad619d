"""Time and memory of what a construction does with all its rows at once, at growing numbers of rows.

Every figure comes from a process of its own, which works alone. Seconds are those of the processor, for a machine with
other work; memory is the largest that the process had beyond what it has after its imports.
"""

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_webperson.construction.caption_statistics import stage_statistics
from dataset_webperson.construction.captions.words import ATTRIBUTE_WORDS
from dataset_webperson.construction.shards import read_table, shard_writer
from dataset_webperson.construction.stages import duplicates
from dataset_webperson.construction.stages.captioning import NEW_COLUMNS
from dataset_webperson.construction.stages.crop import SCHEMA
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.embedding_duplicates import EmbeddingOptions
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard
from dataset_webperson.files import write_json

ROWS_OF_SHARD = 10_000
DIFFERENT_SHARDS = 10
DIMENSION = 64
CAPTION = (
    "A {0} man in a {1} jacket, {2} trousers and {3} shoes carries a {4} bag over his {5} shoulder and walks with the "
    "{6} phone in his hand past a {7} wall."
)
_SPAWN = multiprocessing.get_context("spawn")


def write_rows(folder: str, rows: int) -> list[str]:
    """Crop shards whose pictures are 16 bytes long; a tenth are near-duplicates of the row before."""
    paths = []
    for start in range(0, rows, ROWS_OF_SHARD):
        random, count = np.random.default_rng(start), min(ROWS_OF_SHARD, rows - start)
        hashes = random.integers(1 << 63, size=count, dtype=np.uint64) * np.uint64(2)
        hashes[9::10] = hashes[8::10][: len(hashes[9::10])] ^ np.uint64(1 << 20)
        names = [f"{start + place:09d}.jpg" for place in range(count)]
        sizes = random.integers(90, 300, count)
        columns: dict[str, Any] = {name: [None] * count for name in SCHEMA.names}
        columns["image"] = [{"bytes": name.encode(), "path": name} for name in names]
        columns["image_path"] = columns["source_id"] = names
        columns["image_sha256"] = [random.bytes(32).hex() for _ in names]
        columns["phash"] = [f"{value:016x}" for value in hashes.tolist()]
        columns["box"] = [[0.0, 0.0, float(size), 2.0 * size] for size in sizes.tolist()]
        columns["box_score"] = random.random(count).tolist()
        paths.append(os.path.join(folder, f"{start // ROWS_OF_SHARD:05d}.parquet"))
        with shard_writer(paths[-1], SCHEMA) as shard:
            shard.write_batch(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA))
    return paths


def write_embeddings(shards: list[str], folder: str) -> None:
    """Embeddings of crop shards, with a falling spectrum and a cosine of 0.6 between any two; every tenth a twin."""
    scale = np.exp(-np.arange(DIMENSION) / 20)
    for number, path in enumerate(shards):
        random = np.random.default_rng(number)
        count = pq.read_metadata(path).num_rows
        vectors = random.standard_normal((count, DIMENSION)) * scale / np.linalg.norm(scale)
        vectors[:, 0] += 1.2
        vectors[9::10] = vectors[8::10][: len(vectors[9::10])] + 0.01 * random.standard_normal(DIMENSION)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        schema = pa.schema([("embedding", pa.list_(pa.float32()))])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), DIMENSION)
        with shard_writer(os.path.join(folder, os.path.basename(path)), schema) as shard:
            shard.write_batch(pa.table([column.cast(pa.list_(pa.float32()))], schema=schema))


def write_captions(crops: list[str], folder: str) -> list[str]:
    """The shards of the quality stage, unscored, with two captions of thirty words each; ten, over and over."""
    colors = sorted(ATTRIBUTE_WORDS["color"])
    paths: list[str] = []
    for number, path in enumerate(crops):
        if number >= DIFFERENT_SHARDS:
            paths.append(os.path.join(folder, "4_quality", os.path.basename(path)))
            os.link(paths[number % DIFFERENT_SHARDS], paths[-1])
            continue
        random, table = np.random.default_rng(number), read_table(path, ["image", "image_path"])
        for name, kind in NEW_COLUMNS.items():
            values: list[Any] = [None] * len(table)
            if name in ("caption1", "caption2"):
                values = [CAPTION.format(*random.choice(colors, 8)) for _ in values]
            elif name.startswith("captioner"):
                values = [name] * len(table)
            elif name.endswith("_problems"):
                values = [[]] * len(table)
            elif name == "template_id":
                values = [f"t{place % 65}" for place in range(len(table))]
            table = table.append_column(name, pa.array(values, kind))
        source = os.path.join(folder, "3_caption", os.path.basename(path))
        with shard_writer(source, table.schema) as shard:
            shard.write_batch(table)
        paths.append(source.replace("3_caption", "4_quality"))
        assess_shard(source, paths[-1], QualityOptions())
    return paths


def hashes(root: str, shards: list[str]) -> None:
    """`find_duplicates`, and the copies of the shards without those that go."""
    options = DedupOptions(plan=os.path.join(root, "dedup", "plan"))
    find_duplicates(shards, options)
    for shard in shards:
        dedup_shard(shard, os.path.join(root, "dedup", os.path.basename(shard)), options)


def embeddings(root: str, shards: list[str]) -> None:
    """`find_duplicates` with embeddings that are there already; the hashes are found again with them."""
    duplicates.embedding_shards = lambda *_: []
    find_duplicates(shards, DedupOptions(plan=os.path.join(root, "plan"), embedding=EmbeddingOptions("none")))


def statistics(root: str, shards: list[str]) -> None:
    """The statistics of every shard, counted: what the stages do once for each."""
    stage_statistics(root, "quality", shards)


def report(root: str, shards: list[str]) -> None:
    """The statistics of all shards, added up: what a report does."""
    stage_statistics(root, "quality", shards)


PARTS = (hashes, embeddings, statistics, report)


def _measured(work: Callable[[str, list[str]], None], root: str, shards: list[str], results: Any) -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    before, start, wall = _memory("VmRSS"), time.process_time(), time.monotonic()
    work(root, shards)
    seconds, wall = time.process_time() - start, time.monotonic() - wall
    results.put((seconds, wall, _memory("VmHWM") - before))


def _memory(name: str) -> float:
    """Gigabytes of this process, by Linux's own name."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e9


def measure_growth(root: str, sizes: list[int], parts: list[str]) -> list[dict[str, Any]]:
    """A record for each part and number of rows: `part`, `rows`, `seconds`, `wall_seconds`, `gigabytes`."""
    records = []
    for rows in sizes:
        folder = os.path.join(root, str(rows))
        crops = assessed = write_rows(os.path.join(folder, "1_crop"), rows)
        if "embeddings" in parts:
            write_embeddings(crops, os.path.join(folder, "plan", "embeddings"))
        if "statistics" in parts:
            assessed = write_captions(crops, folder)
        for work in (work for work in PARTS if work.__name__ in parts):
            results = _SPAWN.Queue()
            shards = assessed if work in (statistics, report) else crops
            process = _SPAWN.Process(target=_measured, args=(work, folder, shards, results))
            process.start()
            figures = dict(zip(("seconds", "wall_seconds", "gigabytes"), results.get(), strict=True))
            process.join()
            records.append({"part": work.__name__, "rows": rows, **figures})
        shutil.rmtree(folder)
    return records


def run_growth(root: str, path: str, sizes: list[int], parts: list[str]) -> None:
    """Measure, write the records to `path` and print the table."""
    records = measure_growth(root, sizes, parts)
    write_json(path, records)
    print(growth_table(records))


def growth_table(records: list[dict[str, Any]]) -> str:
    """A row for each part, and how its time grows: the exponent of the rows between the last two sizes."""
    sizes = sorted({record["rows"] for record in records})
    lines = ["| part | " + " | ".join(f"{rows:,} rows" for rows in sizes) + " | exponent |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 1))
    for part in dict.fromkeys(record["part"] for record in records):
        found = {record["rows"]: record for record in records if record["part"] == part}
        cells = [f"{found[rows]['seconds']:.2f} s, {found[rows]['gigabytes']:.2f} GB" for rows in sizes]
        slope = "–"
        if len(sizes) > 1:
            last, before = found[sizes[-1]], found[sizes[-2]]
            ratio = math.log(sizes[-1] / sizes[-2])
            slope = f"{math.log(max(last['seconds'], 1e-3) / max(before['seconds'], 1e-3)) / ratio:.2f}"
        lines.append(f"| {part} | " + " | ".join(cells) + f" | {slope} |")
    return "\n".join(lines)
