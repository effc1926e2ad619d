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

from dataset_webperson.construction.caption_statistics import stage_statistics
from dataset_webperson.construction.stages import duplicates
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.embedding_duplicates import EmbeddingOptions
from dataset_webperson.files import write_json

from .growth_inputs import write_captions, write_embeddings, write_rows

_SPAWN = multiprocessing.get_context("spawn")


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
