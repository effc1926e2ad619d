"""Times queries of a gallery on disk, in a process of its own, so that its memory is that of the searching alone."""

import resource
import time
from pathlib import Path

import lancedb  # noqa: F401 - loaded before anything is measured, as a server has it
import numpy as np
from tqdm.auto import tqdm

from modeling_gadms.gallery.rows import Rows, vector_array
from modeling_gadms.gallery.searching import Found, find, unit

K = 10


def resident() -> float:
    """MB of this process's own memory; pages of files that are mapped do not count, the system takes them back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def search(rows: Rows, query: np.ndarray, where: str | None = None, exact: bool = False) -> Found:
    return find(rows, query, K, where=where, exact=exact, keep=lambda records: list(range(len(records))))


def measure_queries(folder: str, queries: np.ndarray) -> dict[str, float]:
    """Open time, memory, and per kind of query the median and 99th percentile in ms, and recall@10 against exact."""
    before, start = resident(), time.perf_counter()
    rows = Rows(folder, "rows")
    count = rows.count()
    found = {"open_s": time.perf_counter() - start, "rows": count}
    stored = unit(vector_array(rows.take(range(0, count, max(1, count // len(queries))), ["vector"])["vector"]))
    kinds = {
        "text": (queries, None, False),
        "stored": (stored[: len(queries)], None, False),
        "filter 10 %": (queries, "`camera` < 10", False),
        "filter 1 %": (queries, "`camera` = 0", False),
        "exact": (queries[:20], None, True),
    }
    for name, (vectors, where, exact) in kinds.items():
        for query in vectors[:5]:
            search(rows, query, where, exact)
        milliseconds, cpu, hits = [], time.process_time(), []
        for query in tqdm(vectors, desc=name, leave=False, disable=None):
            start = time.perf_counter()
            hits.append({row["id"] for row in search(rows, query, where, exact).rows})
            milliseconds.append(1000 * (time.perf_counter() - start))
        found[f"{name} cpu"] = 1000 * (time.process_time() - cpu) / len(vectors)
        found[f"{name} p50"], found[f"{name} p99"] = np.percentile(milliseconds, [50, 99])
        if not exact:
            few = range(0, len(vectors), max(1, len(vectors) // 50))
            right = [{row["id"] for row in search(rows, vectors[place], where, True).rows} for place in few]
            shares = [len(hits[place] & ids) / K for place, ids in zip(few, right, strict=True)]
            found[f"{name} recall"] = float(np.mean(shares))
    found["memory_mb"] = resident() - before
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return found
