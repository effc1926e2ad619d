"""python examples/benchmark_ranking.py --size small

Times the ranking, text to image alone and both ways, against a plain full sort and against the bare matrix product
that neither can do without, and checks that both give the same numbers, on made-up embeddings. `--size icfg` is the
test set of ICFG-PEDES (19,848 x 19,848, 512 dimensions). Below the table: a slice of 100,000 x 1,000,000 in float16,
and the whole extrapolated from it.

Measured with `OMP_NUM_THREADS=2 python examples/benchmark_ranking.py --size icfg` on two cores of an EPYC, all in one
run:

    |                | one way: seconds | both ways: seconds | GB above the embeddings |
    | full sort      |            41.75 |              75.86 |                   13.66 |
    | ranking        |             4.21 |               6.86 |                    0.27 |
    | matrix product |             2.72 |               3.17 |                    0.01 |

So the ranking is 9.9 times as fast one way and 11.1 times both ways, of the 15.3 and 24.0 times that the matrix
product leaves to any method that computes every score. 8,192 x 100,000 in float16 took 8.39 s and 0.15 GB:
100,000 x 1,000,000 would take 0.28 h and no more memory.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from modeling_gadms.person_retrieval.ranking import rank_both_ways, retrieval_metrics, summarize_ranks

DIM, MATCHES, NOISE = 512, 20, 2.5
# Queries and gallery items of the comparison, then of the slice.
SIZES = {"small": ((2000, 4000), (1024, 20_000)), "icfg": ((19_848, 19_848), (8192, 100_000))}
WHOLE = (100_000, 1_000_000)
WORKERS = ("full sort", "ranking", "matrix product", "slice")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    pair, part = SIZES[args.size]
    if args.worker:
        print(json.dumps(measure(args.worker, *(part if args.worker == "slice" else pair))))
        return

    # Each in a process of its own: the peak of memory is that of a process.
    results = {}
    for worker in WORKERS:
        command = [sys.executable, "-W", "ignore", __file__, "--size", args.size, "--worker", worker]
        results[worker] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    sort, rank, product, piece = results.values()
    names = "R@1 R@5 R@10 mAP mINP".split()
    differences = [abs(sort["metrics"][way][key] - rank["metrics"][way][key]) for way in (0, 1) for key in names]
    print(f"{pair[0]:,} queries x {pair[1]:,} gallery items x {DIM}, {torch.get_num_threads()} threads\n")
    head = ["", "one way: seconds", "both ways: seconds", "GB above the embeddings", *names]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, row in results.items():
        if name != "slice":
            numbers = [f"{row['metrics'][0][key]:.4f}" if row["metrics"][0] else "" for key in names]
            cells = [name, *(f"{row[key]:.2f}" for key in ("one", "both", "gigabytes")), *numbers]
            print(f"| {' | '.join(cells)} |")
    ratios = [f"{sort[key] / rank[key]:.1f} ({sort[key] / product[key]:.1f})" for key in ("one", "both")]
    print(
        f"\nTimes as fast as the full sort (as the matrix product alone): one way {ratios[0]}, both ways {ratios[1]};"
    )
    print(f"largest difference {max(differences):.1e}.\n")
    hours = piece["one"] * (WHOLE[0] / part[0]) * (WHOLE[1] / part[1]) / 3600
    print(f"float16, {part[0]:,} x {part[1]:,}: {piece['one']:.2f} s, {piece['gigabytes']:.2f} GB above them;")
    print(f"{WHOLE[0]:,} x {WHOLE[1]:,} would take {hours:.2f} h and as much memory.")


def measure(worker: str, num_queries: int, num_gallery: int) -> dict:
    """Seconds, the peak of memory above the embeddings, and the metrics."""
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
    steps = {
        "full sort": (lambda: full_sort(*data), lambda: full_sort(*back)),
        "ranking": (lambda: retrieval_metrics(*data), lambda: [summarize_ranks(r) for r in rank_both_ways(*data)]),
        "matrix product": (lambda: matrix_product(*data),) * 2,
        "slice": (lambda: retrieval_metrics(*data),),
    }[worker]
    rank_both_ways(gallery[:256], gallery[:256], gallery_ids[:256], gallery_ids[:256])  # threads and libraries are up
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = peak_kilobytes()
    seconds, metrics = [], []
    for step in steps:
        start = time.perf_counter()
        metrics.append(step())
        seconds.append(time.perf_counter() - start)
    both = sum(seconds) if worker == "full sort" else seconds[-1]
    metrics = metrics[-1] if worker == "ranking" else metrics
    return {"one": seconds[0], "both": both, "gigabytes": (peak_kilobytes() - before) / 2**20, "metrics": metrics}


def matrix_product(queries, gallery, *_) -> None:
    """The scores alone, in the blocks of the ranking."""
    out = torch.empty(1024, 2048)
    for rows in queries.split(1024):
        for cols in gallery.split(2048):
            torch.mm(rows, cols.T, out=out[: len(rows), : len(cols)])


def peak_kilobytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def full_sort(queries, gallery, query_ids, gallery_ids) -> dict[str, float]:
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


if __name__ == "__main__":
    main()
