"""Study 5: what is exact in training, and how far from the same result is what is not?

    python examples/studies/exactness.py                                    # 20 steps of the small CLIP, 6 minutes

One reference run, and the same run again; ended by `kill -9` at random moments, a checkpoint being written after each
step, and resumed from the last whole one; by two processes; with each batch in chunks; under bfloat16 autocast.
Differences are between the losses of each step, and between the weights at the end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from exact_runs import BATCH, STEPS, Run, killed_runs, load_rows, read_run, run, save_run
from study_report import RESULTS, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command


def two_processes(folder: str) -> Run:
    """The same run by two processes, half of each batch each."""
    file = os.path.join(folder, "two.safetensors")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, os.path.abspath(__file__), "--half_of", file], check=True, cwd=folder)
    return read_run(file)


def compare(reference: Run, other: Run, start: torch.Tensor) -> dict:
    """How far apart two runs end, against how far the reference came from `start`."""
    losses, weights = ((a - b).abs() for a, b in zip(reference, other, strict=True))
    moved = (reference[1] - start).norm()
    return {
        "same_bits": bool((losses == 0).all() and (weights == 0).all()),
        "largest_loss_difference": float((losses / reference[0]).max()),
        "largest_weight_difference": float(weights.max()),
        "relative_drift": float((reference[1] - other[1]).norm() / moved),
        "loss_differences": (losses / reference[0]).tolist(),
    }


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--num_kills", type=int, default=20, help="random moments at which a run is killed (default: %(default)s)"
    )
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    parser.add_argument("--half_of", help=argparse.SUPPRESS)  # one of two processes: where the run is left
    args = parser.parse_args(arguments)
    if args.half_of:
        save_run(args.half_of, f"{args.half_of}.folder", per_device_train_batch_size=BATCH // 2)
        return
    rows = load_rows()
    found, folder = {}, tempfile.mkdtemp()
    try:
        start = run(rows, folder, learning_rate=0.0, weight_decay=0.0, max_steps=1)[1]
        reference = run(rows, folder)
        found["the same run again"] = run(rows, folder)
        ended, steps = killed_runs(folder, args.num_kills)
        for number, one in enumerate(ended):
            found[f"killed and resumed, run {number + 1} of {len(ended)}"] = one
        found[f"2 processes of {BATCH // 2}"] = two_processes(folder)
        for chunks in (2, 4):
            size = BATCH // chunks
            found[f"{chunks} chunks of {size} for a batch of {BATCH}"] = run(
                rows, folder, per_device_train_batch_size=size, gradient_accumulation_steps=chunks
            )
        found["bfloat16 autocast"] = run(rows, folder, bf16=True)
    finally:
        shutil.rmtree(folder)
    results = {name: compare(reference, other, start) for name, other in found.items()}
    keys = ("largest_loss_difference", "largest_weight_difference", "relative_drift")
    head = ["run", "same bits", "loss, largest relative difference", "weight, largest difference", "drift over way"]
    lines = [
        [name, "yes" if one["same_bits"] else "no", *(f"{one[key]:.1e}" for key in keys)]
        for name, one in results.items()
    ]
    text = (
        f"{STEPS} steps of {BATCH} pairs, {torch.get_num_threads()} threads. The last column is the distance between "
    )
    text += "the final weights over the distance that the reference run came.\n\n" + table(head, lines)
    text += f"\n\n`kill -9` found runs after these whole steps: {', '.join(map(str, steps))}."
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, one in results.items():
        if not one["same_bits"]:
            axis.semilogy(range(1, STEPS + 1), one["loss_differences"], marker=".", label=name)
    axis.set(xlabel="step", ylabel="relative difference of the loss")
    axis.legend(title="all others: not one bit differs")
    content = {"results": results, "killed_after_steps": steps}
    save_study("exactness", "What is exact in training?", content, text, figure, args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
