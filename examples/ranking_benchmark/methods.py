"""The methods that the ranking's benchmark compares, each timed on the same made-up embeddings."""

import re
import time
from pathlib import Path

import torch

from modeling_gadms.person_retrieval.ranking import rank_both_ways, retrieval_metrics, summarize_ranks

DIM, MATCHES, NOISE = 512, 20, 2.5


def measure(worker: str, num_queries: int, num_gallery: int, repeats: int) -> dict:
    """Seconds of each call, the peak of memory above the embeddings, and the metrics."""
    generator = torch.Generator().manual_seed(0)
    num_ids = num_gallery // MATCHES
    gallery_ids = torch.randperm(num_gallery, generator=generator) % num_ids
    query_ids = torch.arange(num_queries) % num_ids
    centres = torch.randn(num_ids, DIM, generator=generator)
    queries, gallery = (
        (centres[ids].add_(torch.randn(len(ids), DIM, generator=generator), alpha=NOISE))
        for ids in (query_ids, gallery_ids)
    )
    if worker == "slice":
        queries, gallery = queries.half(), gallery.half()
    data = queries, gallery, query_ids, gallery_ids
    back = gallery, queries, gallery_ids, query_ids
    ways = {
        "full sort": (lambda: [full_sort(*data)], lambda: [full_sort(*data), full_sort(*back)]),
        "ranking": (
            lambda: [retrieval_metrics(*data)],
            lambda: [summarize_ranks(ranks) for ranks in rank_both_ways(*data)],
        ),
        "matrix product": (lambda: [matrix_product(*data)],) * 2,
        "slice": (lambda: [retrieval_metrics(*data)],),
    }[worker]
    rank_both_ways(gallery[:256], gallery[:256], gallery_ids[:256], gallery_ids[:256])  # threads and libraries are up
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = peak_kilobytes()
    seconds, metrics = [], []
    for way in ways:
        seconds.append([])
        for _ in range(repeats):
            start = time.perf_counter()
            metrics = way()
            seconds[-1].append(time.perf_counter() - start)
    gigabytes = (peak_kilobytes() - before) / 2**20
    return {"one": seconds[0], "both": seconds[-1], "gigabytes": gigabytes, "metrics": metrics}


def matrix_product(queries: torch.Tensor, gallery: torch.Tensor, *_: torch.Tensor) -> None:
    """The scores alone, in the blocks of the ranking."""
    out = torch.empty(1024, 2048)
    for rows in queries.split(1024):
        for cols in gallery.split(2048):
            torch.mm(rows, cols.T, out=out[: len(rows), : len(cols)])


def peak_kilobytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def full_sort(
    queries: torch.Tensor, gallery: torch.Tensor, query_ids: torch.Tensor, gallery_ids: torch.Tensor
) -> dict[str, float]:
    """The plain way: all scores, every row sorted, cumulative sums of the matches."""
    queries, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (queries, gallery))
    order = (queries @ gallery.T).argsort(dim=1, descending=True)
    matches = gallery_ids[order] == query_ids[:, None]
    found = matches.cumsum(dim=1)
    place = torch.arange(1, found.shape[1] + 1)
    precision = found / place * matches
    total = found[:, -1]
    last = (matches * place).amax(dim=1)
    metrics = {f"R@{k}": 100 * (found[:, k - 1] > 0).double().mean().item() for k in (1, 5, 10)}
    metrics["mAP"] = 100 * (precision.double().sum(dim=1) / total).mean().item()
    metrics["mINP"] = 100 * (total.double() / last).mean().item()
    return metrics
