"""python examples/benchmark_ranking.py --size small

Times the ranking against a plain full sort and checks that both give the same numbers, on made-up embeddings with the
mAP of good models. `--size icfg` is the test set of ICFG-PEDES (19,848 x 19,848, 512 dimensions): the full sort then
takes about a minute and 15 GB. Below the table: a slice of 100,000 x 1,000,000 in float16, and the whole
extrapolated from it.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from modeling_gadms.person_retrieval.ranking import retrieval_metrics

DIM, MATCHES, NOISE = 512, 20, 2.5
# Queries and gallery items of the comparison, then of the slice.
SIZES = {"small": ((2000, 4000), (1024, 20_000)), "icfg": ((19_848, 19_848), (8192, 100_000))}
WHOLE = (100_000, 1_000_000)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--worker", choices=("full sort", "ranking", "slice"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    pair, part = SIZES[args.size]
    if args.worker:
        print(json.dumps(measure(args.worker, *(part if args.worker == "slice" else pair))))
        return

    # Each in a process of its own: the peak of memory is that of a process.
    results = {}
    for worker in ("full sort", "ranking", "slice"):
        command = [sys.executable, "-W", "ignore", __file__, "--size", args.size, "--worker", worker]
        results[worker] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sort, rank, piece = (results[worker] for worker in ("full sort", "ranking", "slice"))
    differences = [abs(sort["metrics"][key] - rank["metrics"][key]) for key in sort["metrics"]]
    names = "R@1 R@5 R@10 mAP mINP".split()
    print(f"{pair[0]:,} queries x {pair[1]:,} gallery items x {DIM}, {torch.get_num_threads()} threads\n")
    print("| | seconds | GB above the embeddings | " + " | ".join(names) + " |\n|---|---|---|" + "---|" * len(names))
    for name in ("full sort", "ranking"):
        row = results[name]
        numbers = " | ".join(f"{row['metrics'][key]:.4f}" for key in names)
        print(f"| {name} | {row['seconds']:.2f} | {row['gigabytes']:.2f} | {numbers} |")
    print(f"\n{sort['seconds'] / rank['seconds']:.1f} times as fast; largest difference {max(differences):.1e}.\n")
    hours = piece["seconds"] * (WHOLE[0] / part[0]) * (WHOLE[1] / part[1]) / 3600
    print(f"float16, {part[0]:,} x {part[1]:,}: {piece['seconds']:.2f} s, {piece['gigabytes']:.2f} GB above them;")
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
    function = full_sort if worker == "full sort" else retrieval_metrics
    retrieval_metrics(queries[:64], gallery[:256], gallery_ids[:64], gallery_ids[:256])  # threads and libraries are up
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = peak_kilobytes()
    start = time.perf_counter()
    metrics = function(queries, gallery, query_ids, gallery_ids)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "gigabytes": (peak_kilobytes() - before) / 2**20, "metrics": metrics}


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
