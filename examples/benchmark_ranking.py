"""Time the exact ranking beside a full sort, and beside the bare matrix product that neither can do without.

    python examples/benchmark_ranking.py --size cuhk            # 6,156 x 3,074: the test set of CUHK-PEDES
    python examples/benchmark_ranking.py --size icfg --busy     # 19,848 x 19,848, beside two processes that spin

The embeddings are made up, 512 wide. Each method runs in a process of its own, text to image alone and both ways,
ten times. The table shows minimum, median and maximum seconds, peak memory above the embeddings, and the metrics,
which must agree. Last comes a slice of 100,000 x 1,000,000 in float16, from which the whole is extrapolated.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.person_retrieval.ranking import METRICS, rank_both_ways, retrieval_metrics, summarize_ranks

DIM, MATCHES, NOISE = 512, 20, 2.5
# queries and gallery items of the comparison, then of the slice
SIZES = {
    "small": ((2000, 4000), (1024, 20_000)),
    "cuhk": ((6156, 3074), (1024, 20_000)),
    "icfg": ((19_848, 19_848), (8192, 100_000)),
}
WHOLE = (100_000, 1_000_000)
METHODS = ("full sort", "ranking", "matrix product")
WAYS = {"one": "one way", "both": "both ways"}
SPIN = "while True: pass"


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the two sets (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="calls per method (default: %(default)s)")
    parser.add_argument(
        "--busy", action="store_true", help="measure while two other processes keep one core busy each"
    )
    parser.add_argument("--worker", choices=(*METHODS, "slice"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    pair, part = SIZES[args.size]
    if args.worker:
        print(json.dumps(measure(args.worker, *(part if args.worker == "slice" else pair), args.repeats)))
        return
    with two_busy_processes() if args.busy else contextlib.nullcontext():
        results = {name: in_own_process(name, args.size, args.repeats) for name in METHODS}
        piece = in_own_process("slice", args.size, 1)
    state = f"{args.repeats} calls, {'beside two busy processes' if args.busy else 'quiet'}"
    threads = torch.get_num_threads()
    print(f"{pair[0]:,} queries x {pair[1]:,} gallery items x {DIM}, {threads} threads, {state}\n")
    print(table(results))
    print(comparison(results))
    hours = piece["one"][0] * (WHOLE[0] / part[0]) * (WHOLE[1] / part[1]) / 3600
    print(f"float16, {part[0]:,} x {part[1]:,}: {piece['one'][0]:.2f} s, {piece['gigabytes']:.2f} GB above them;")
    print(f"{WHOLE[0]:,} x {WHOLE[1]:,} would take {hours:.2f} h and the same memory.")


@contextlib.contextmanager
def two_busy_processes() -> Iterator[None]:
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def in_own_process(worker: str, size: str, repeats: int) -> dict:
    """The result of [`measure`], in a process of its own because peak memory is counted per process."""
    command = [sys.executable, "-W", "ignore", __file__, "--size", size, "--repeats", str(repeats), "--worker", worker]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(results: dict[str, dict]) -> str:
    """Markdown: a row per method."""
    head = ["", *(f"{words}: s, min / median / max" for words in WAYS.values()), "GB above the embeddings", *METRICS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in results.items():
        seconds = [f"{min(s):.2f} / {statistics.median(s):.2f} / {max(s):.2f}" for s in (found[way] for way in WAYS)]
        metrics = found["metrics"][0]
        numbers = [f"{metrics[key]:.4f}" if metrics else "" for key in METRICS]
        cells = [name, *seconds, f"{found['gigabytes']:.2f}", *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(results: dict[str, dict]) -> str:
    """The speed of the ranking relative to the full sort, by medians, and its spread."""
    sort, rank, product = (results[name] for name in METHODS)
    median = {way: [statistics.median(found[way]) for found in (sort, rank, product)] for way in WAYS}
    ratios = [f"{words} {median[way][0] / median[way][1]:.1f}" for way, words in WAYS.items()]
    limits = [f"{words} {median[way][0] / median[way][2]:.1f}" for way, words in WAYS.items()]
    spread = [f"{words} {max(rank[way]) / min(rank[way]):.2f}" for way, words in WAYS.items()]
    pairs = zip(sort["metrics"], rank["metrics"], strict=True)
    differences = [abs(one[key] - other[key]) for one, other in pairs for key in METRICS]
    return (
        f"\nTimes as fast as the full sort: {', '.join(ratios)}; the matrix product alone: {', '.join(limits)}\n"
        f"Slowest call of the ranking over its fastest: {', '.join(spread)}\n"
        f"Largest difference of a metric: {max(differences):.1e}\n"
    )


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
    rank_both_ways(gallery[:256], gallery[:256], gallery_ids[:256], gallery_ids[:256])  # start threads and libraries
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
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
    sys.exit(main())
