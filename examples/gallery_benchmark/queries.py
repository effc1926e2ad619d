"""Times queries of a gallery on disk, in a process of its own, so that its memory is that of the searching alone."""

import time
from pathlib import Path

import lancedb  # noqa: F401 - loaded before anything is measured, as a server has it
import numpy as np
from tqdm.auto import tqdm

from modeling_gadms.gallery.rows import Rows
from modeling_gadms.gallery.searching import Found, find

K = 10
FILTERS = {"text": None, "stored": None, "filter 10 %": "`camera` < 10", "filter 1 %": "`camera` = 0"}
NUM_EXACT = 10  # exact searches that are timed


def memory() -> dict[str, float]:
    """MB of this process: its own (`RssAnon`), and all (`VmRSS`), with pages of mapped files and of the libraries."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1000 for name, key in (("own", "RssAnon"), ("all", "VmRSS"))}


def search(rows: Rows, query: np.ndarray, where: str | None = None, exact: bool = False) -> Found:
    return find(
        rows, query, K, ["uri", "camera"], where=where, exact=exact, keep=lambda records: list(range(len(records)))
    )


def measure_queries(folder: str, queries: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, float]:
    """Open time, memory, and per kind of query p50 and p99 in ms, CPU ms, and the share of the right ones found.

    Args:
        folder (`str`): of the table.
        queries (`dict`): `(queries, dimension)` by kind, the keys of `FILTERS`.
        right (`dict`): numbers of the right rows `(queries, K)` by kind.
    """
    before, start = memory(), time.perf_counter()
    rows = Rows(folder, "rows")
    found = {"rows": rows.count(), "open_s": time.perf_counter() - start}
    for name, where in FILTERS.items():
        for query in queries[name][:5]:
            search(rows, query, where)
        milliseconds, cpu, hits = [], time.process_time(), []
        for query in tqdm(queries[name], desc=name, leave=False, disable=None):
            start = time.perf_counter()
            hits.append({int(row["uri"]) for row in search(rows, query, where).rows})
            milliseconds.append(1000 * (time.perf_counter() - start))
        found[f"{name} cpu"] = 1000 * (time.process_time() - cpu) / len(hits)
        found[f"{name} p50"], found[f"{name} p99"] = map(float, np.percentile(milliseconds, [50, 99]))
        shares = [len(ids & set(best.tolist())) / K for ids, best in zip(hits, right[name], strict=True)]
        found[f"{name} recall"] = float(np.mean(shares))
    after = memory()
    found |= {f"memory {name}": after[name] - before[name] for name in before}
    milliseconds, cpu = [], time.process_time()
    for query in queries["text"][:NUM_EXACT]:
        start = time.perf_counter()
        search(rows, query, exact=True)
        milliseconds.append(1000 * (time.perf_counter() - start))
    found["exact cpu"] = 1000 * (time.process_time() - cpu) / NUM_EXACT
    found["exact p50"], found["exact p99"] = map(float, np.percentile(milliseconds, [50, 99]))
    return found
