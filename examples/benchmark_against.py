"""Time the training step, the ranking and the loader beside those of another commit, in one run.

    python examples/benchmark_against.py HEAD~1 --rounds 9       # or a folder that holds another copy

A process for each of the two times its own code on one thread, and they take turns, the other first in every second
round. The table shows the median over rounds of the other's time beside this one's: above 1, this code is faster. On
a machine that others use too, look at CPU time. Weights are random, and rows are made up.
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import datasets
from loading_benchmark.collated import SMALL_CLIP
from loading_benchmark.inputs import make_release, make_source

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.findings import DataError
from dataset_webperson.release_shards import Layout

HERE = Path(__file__).resolve().parents[1]
WORKER = HERE / "examples" / "against_benchmark" / "worker.py"


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("other", help="a commit, or the folder of another copy of this repository")
    parser.add_argument("--rows", type=int, default=512, help="rows that a loader reads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.rows < 64 or args.rounds < 1:
        parser.error("--rows must be at least 64, a batch, and --rounds at least 1")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        other = args.other if os.path.isdir(args.other) else checked_out(args.other, f"{folder}/other")
        release = make_release(make_source(f"{folder}/source", args.rows), f"{folder}/release", Layout())
        print(table(compared([str(HERE), other], release, args.rounds), args.rounds))


def checked_out(commit: str, folder: str) -> str:
    """The files of a commit of this repository, in a folder."""
    archive = subprocess.run(["git", "-C", HERE, "archive", commit, "-o", f"{folder}.tar"], capture_output=True)
    if archive.returncode:
        raise DataError(f"{commit}: no folder, and git has no such commit; give one of them")
    with tarfile.open(f"{folder}.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder


def compared(trees: list[str], release: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each part and round, how many times longer the second tree takes than the first, in wall and CPU time."""
    command = [sys.executable, str(WORKER), release, SMALL_CLIP]
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": tree},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for tree in trees
    ]
    try:
        names = [json.loads(answer(worker)) for worker in workers][0]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(rounds):
            for name in names:
                seconds = [[0.0, 0.0], [0.0, 0.0]]
                for place in (0, 1) if turn % 2 else (1, 0):
                    pipe = workers[place].stdin
                    assert pipe is not None
                    pipe.write(f"{name}\n")
                    pipe.flush()
                    seconds[place] = json.loads(answer(workers[place]))
                found[name].append((seconds[1][0] / seconds[0][0], seconds[1][1] / seconds[0][1]))
    finally:
        for worker in workers:
            worker.communicate()  # which closes its input, and so ends it
    return found


def answer(worker: subprocess.Popen) -> str:
    assert worker.stdout is not None
    if line := worker.stdout.readline():
        return line
    raise DataError("the code of one of the two cannot be timed: it lacks what is timed, or its packages")


def table(found: dict[str, list[tuple[float, float]]], rounds: int) -> str:
    lines = [f"the other's time beside this one's, medians of {rounds} rounds\n"]
    lines += ["| | wall time | CPU time | from | to |", "|---|---|---|---|---|"]
    for name, ratios in found.items():
        wall, cpu = (statistics.median(side) for side in zip(*ratios, strict=True))
        spread = sorted(ratio for _, ratio in ratios)
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {spread[0]:.2f} | {spread[-1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
