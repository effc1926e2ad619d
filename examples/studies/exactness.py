"""Study 5: what is exact in training, and how far from the same result is what is not?

    python examples/studies/exactness.py                                    # 20 steps of the small CLIP, 6 minutes

One reference run, and the same run again; ended by `kill -9` at random moments, a checkpoint being written after each
step, and resumed from the last whole one; by two processes; with each batch in chunks; under bfloat16 autocast.
Differences are between the losses of each step, and between the weights at the end.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import datasets
import torch
from masking_cells import SMALL_CLIP
from safetensors.torch import load_file, save_file
from study_report import RESULTS, pyplot, save_study, table
from transformers import set_seed

from dataset_webperson import WebPerson
from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.starting_points import load_starting_point
from modeling_gadms.training.trainer import GADMSTrainer

IMAGE_SIZE, BATCH, STEPS = (64, 32), 32, 20

Run = tuple[torch.Tensor, torch.Tensor]  # losses by step `(STEPS,)`, and all weights in one vector, both float64


def load_rows() -> datasets.Dataset:
    """Two epochs of captioned images; drawn by the first process that asks, read by the others."""
    options = {"image_size": IMAGE_SIZE, "num_train_persons": STEPS * BATCH // 4, "noise_rate": 0.3}
    data = WebPerson(config_name="synthetic", seed=0, **options)
    data.download_and_prepare()
    return data.as_dataset(split="train")


def run(rows: datasets.Dataset, folder: str, resume: bool = False, **options: Any) -> Run:
    """Losses by step `(STEPS,)`, and all weights in one float64 vector, of a run from the same seed."""
    set_seed(0)
    model, processor = load_starting_point(SMALL_CLIP, IMAGE_SIZE)
    defaults = {"per_device_train_batch_size": BATCH, "save_strategy": "no", "logging_steps": 1, "seed": 0}
    defaults |= {"max_steps": STEPS, "warmup_epochs": 0.5, "adam_epsilon": 1e-8, "crop_padding": 2}
    quiet = {"use_cpu": True, "disable_tqdm": True, "log_level": "error"}
    args = GADMSTrainingArguments(output_dir=folder, **{**defaults, **quiet, **options})
    trainer = GADMSTrainer(model, args, processor, train_dataset=rows)
    trainer.train(resume_from_checkpoint=args.last_checkpoint() if resume else None)
    losses = [
        entry["sdm_loss"] + args.mtp_weight * entry["mtp_loss"]
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    weights = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


def save_run(file: str, folder: str, resume: bool = False, **options: Any) -> None:
    """A run in a process of its own; what it ends with is left in `file`."""
    losses, weights = run(load_rows(), folder, resume, **options)
    if int(os.environ.get("RANK", 0)) == 0:
        save_file({"losses": losses, "weights": weights}, file)


def read_run(file: str) -> Run:
    found = load_file(file)
    return found["losses"], found["weights"]


def newest_step(folder: str) -> int:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


def killed_runs(folder: str, num_kills: int) -> tuple[list[Run], list[int]]:
    """`kill -9` this many times; returns the runs that finished, and the steps at which the kills found them."""
    server = multiprocessing.get_context("forkserver")  # a child has imported everything when it starts
    server.set_forkserver_preload(["exactness"])
    file, options = os.path.join(folder, "killed.safetensors"), {"save_strategy": "steps", "save_steps": 1}
    moments, seconds, ended, steps = random.Random(0), None, [], []
    while len(steps) < num_kills or not ended:
        checkpoints = os.path.join(folder, f"run{len(ended)}")
        arguments = {"resume": True, "save_total_limit": 2, **options}
        child = server.Process(target=save_run, args=(file, checkpoints), kwargs=arguments)
        began = time.monotonic()
        child.start()
        # the first one shows how long a run takes; when there were enough kills, the last one may come to its end
        child.join(None if seconds is None or len(steps) >= num_kills else moments.uniform(0, seconds))
        if child.exitcode is None:
            child.kill()
            child.join()
        seconds = seconds or time.monotonic() - began
        if child.exitcode == 0:
            ended.append(read_run(file))
        elif child.exitcode == -signal.SIGKILL:
            steps.append(newest_step(checkpoints))
        else:
            raise RuntimeError(f"a resumed run ended with {child.exitcode}; see above")
    return ended, steps


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
