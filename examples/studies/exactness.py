"""Study 5: what is exact in training, and how far from the same result is what is not?

    python examples/studies/exactness.py                                    # 20 steps of the small CLIP, 2 minutes

One reference run, and the same run again; stopped after some random steps and resumed; with each batch in chunks;
under bfloat16 autocast. Differences are between the losses of each step, and between the weights at the end.
"""

import argparse
import os
import random
import shutil
import tempfile

import torch
from masking_cells import SMALL_CLIP
from study_report import RESULTS, pyplot, save_study, table
from transformers import TrainerCallback, set_seed

from dataset_webperson import WebPerson
from modeling_gadms import GADMSForPreTraining, GADMSProcessor
from modeling_gadms.trainer import GADMSTrainer
from modeling_gadms.training_arguments import GADMSTrainingArguments

IMAGE_SIZE, BATCH, STEPS = (64, 32), 32, 20


class StopAfter(TrainerCallback):
    """Ends training after a step, which is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = state.global_step == self.step


def run(rows, folder, stop_after=None, resume_from_checkpoint=None, **options):
    """Losses by step `(STEPS,)`, and all weights in one float64 vector, of a run from the same seed."""
    set_seed(0)
    kinds = (GADMSForPreTraining, GADMSProcessor)
    model, processor = (kind.from_clip_pretrained(SMALL_CLIP, image_size=IMAGE_SIZE) for kind in kinds)
    defaults = {"per_device_train_batch_size": BATCH, "save_strategy": "no", "logging_steps": 1, "seed": 0}
    defaults |= {"max_steps": STEPS, "warmup_epochs": 0.5, "adam_epsilon": 1e-8, "crop_padding": 2}
    quiet = {"use_cpu": True, "disable_tqdm": True, "log_level": "error"}
    args = GADMSTrainingArguments(output_dir=folder, **{**defaults, **quiet, **options})
    trainer = GADMSTrainer(model, args, processor, train_dataset=rows)
    if stop_after is not None:
        trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    losses = [
        entry["sdm_loss"] + args.mtp_weight * entry["mtp_loss"]
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    weights = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


def compare(reference, other, start) -> dict:
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_stops", type=int, default=3, help="random steps after which to stop and resume")
    parser.add_argument("--results_dir", default=RESULTS)
    args = parser.parse_args()
    options = {"image_size": IMAGE_SIZE, "num_train_persons": STEPS * BATCH // 4, "noise_rate": 0.3}  # two epochs
    data = WebPerson(config_name="synthetic", seed=0, **options)
    data.download_and_prepare()
    rows = data.as_dataset(split="train")
    found, folder = {}, tempfile.mkdtemp()
    try:
        start = run(rows, folder, learning_rate=0.0, weight_decay=0.0, max_steps=1)[1]
        reference = run(rows, folder)
        found["the same run again"] = run(rows, folder)
        for step in sorted(random.Random(0).sample(range(1, STEPS), args.num_stops)):
            run(rows, folder, stop_after=step)
            checkpoint = os.path.join(folder, f"checkpoint-{step}")
            found[f"stopped after step {step} and resumed"] = run(rows, folder, resume_from_checkpoint=checkpoint)
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
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, one in results.items():
        if not one["same_bits"]:
            axis.semilogy(range(1, STEPS + 1), one["loss_differences"], marker=".", label=name)
    axis.set(xlabel="step", ylabel="relative difference of the loss")
    axis.legend(title="all others: not one bit differs")
    save_study("exactness", "What is exact in training?", {"results": results}, text, figure, args.results_dir)


if __name__ == "__main__":
    main()
