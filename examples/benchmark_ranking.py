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
import statistics
import subprocess
import sys
from collections.abc import Iterator

import torch
from ranking_benchmark.methods import DIM, measure

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.person_retrieval.ranking import METRICS

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
    parser.add_argument("--size", choices=SIZES, default="small", help="of the two sets (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="calls per method (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="measure beside two processes that keep a core busy each")
    parser.add_argument("--worker", choices=(*METHODS, "slice"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1; got {args.repeats}")
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
    print(f"{WHOLE[0]:,} x {WHOLE[1]:,} would take {hours:.2f} h by proportion; this was not measured.")


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
    """What [`measure`] finds; the peak of memory is that of a process."""
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
    """How many times as fast the ranking is, by medians, and how steady."""
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


if __name__ == "__main__":
    sys.exit(main())
