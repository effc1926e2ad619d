"""Runs of the study `exactness.py`: from one seed, in a process of their own, or killed and resumed."""

import multiprocessing
import os
import random
import signal
import time
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from starting_point import SMALL_CLIP
from transformers import set_seed

from dataset_webperson import WebPerson
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
    server.set_forkserver_preload(["exact_runs"])
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
