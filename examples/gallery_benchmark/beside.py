"""What a gallery is compared with: faiss's flat index over a mapped file, and the exact product in blocks."""

import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from .inputs import BLOCK
from .queries import FILTERS, K

NUM_TIMED = 20


def camera(numbers: torch.Tensor) -> torch.Tensor:
    """The column that is filtered: 0 to 99, each in a hundredth of the rows."""
    return numbers * 37 % 100


_HOLDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "filter 10 %": lambda cameras: cameras < 10,
    "filter 1 %": lambda cameras: cameras == 0,
}


def right_rows(vectors: np.ndarray, queries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers `(queries, K)` of the rows of the highest cosine, by kind of query, in one pass over all rows."""
    best = {name: (torch.zeros(len(queries[name]), 0), torch.zeros(len(queries[name]), 0).long()) for name in FILTERS}
    for first in range(0, len(vectors), BLOCK):
        part = torch.from_numpy(vectors[first : first + BLOCK]).float()
        part /= part.norm(dim=1, keepdim=True)
        numbers = torch.arange(first, first + len(part))
        for name in FILTERS:
            kept = _HOLDS[name](camera(numbers)) if name in _HOLDS else torch.ones(len(part), dtype=torch.bool)
            scores = torch.cat([best[name][0], torch.from_numpy(queries[name]).float() @ part[kept].T], dim=1)
            rows = torch.cat([best[name][1], numbers[kept].expand(len(scores), -1)], dim=1)
            top = scores.topk(min(K, scores.shape[1]), dim=1)
            best[name] = top.values, rows.gather(1, top.indices)
    return {name: rows.numpy() for name, (_, rows) in best.items()}


def measure_others(vectors: np.ndarray, queries: np.ndarray, folder: Path) -> dict[str, float]:
    """p50, p99 and CPU ms of a query of faiss's flat float16 index, mapped, and of torch's product in blocks."""
    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for first in range(0, len(vectors), BLOCK):
        index.add(vectors[first : first + BLOCK].astype(np.float32))
    file = str(folder / "flat.faiss")
    faiss.write_index(index, file)
    del index
    mapped, blocks = faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC), torch.from_numpy(vectors).split(BLOCK)
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "faiss flat": lambda query: mapped.search(query[None], K),
        "torch blocks": lambda query: torch.cat([part.float() @ torch.from_numpy(query) for part in blocks]).topk(K),
    }
    found = {}
    for name, search in ways.items():
        milliseconds, cpu = [], time.process_time()
        for query in queries[:NUM_TIMED].astype(np.float32):
            start = time.perf_counter()
            search(query)
            milliseconds.append(1000 * (time.perf_counter() - start))
        found[f"{name} cpu"] = 1000 * (time.process_time() - cpu) / len(milliseconds)
        found[f"{name} p50"], found[f"{name} p99"] = map(float, np.percentile(milliseconds, [50, 99]))
    return found
