r"""Fine-tune GA-DMS, or a CLIP, on a benchmark of persons with captions, by the recipe of IRRA.

    accelerate launch examples/finetune.py --model_name_or_path runs/webperson --dataset_name cuhk-pedes \
        --data_root data/CUHK-PEDES --bf16 True --output_dir runs/cuhk
    accelerate launch examples/finetune.py ... --per_device_train_batch_size 16 --gradient_accumulation_steps 4
    accelerate launch examples/finetune.py ... --masking gradient_attention --instances_per_person 4 --lora True
    accelerate launch examples/finetune.py --model_name_or_path runs/demo --dataset_name synthetic \
        --output_dir runs/synthetic

The data set is cuhk-pedes, icfg-pedes, rstpreid or ufine6926 in the folder `--data_root`, or `synthetic`. The best
epoch is chosen on validation; where a benchmark has no such split, `--validation_persons 200` holds persons out of
train. Test is measured before training (direct transfer) and once at the end. `--gradient_accumulation_steps` gives
the loss and gradient of the whole batch; `--activation_checkpointing True` saves more memory. The default optimiser
settings are for whole towers: with `--lora True`, use `--learning_rate 1e-4 --adam_epsilon 1e-8`.
Beside the checkpoint, a plain GA-DMS into which adapters are merged, it writes metrics.json and, with LoRA, adapter/.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import datasets
from peft import PeftModel
from transformers import set_seed

from dataset_webperson import DataError, WebPerson, load_benchmark
from dataset_webperson.command_line import command
from dataset_webperson.files import write_json
from modeling_gadms.evaluation.benchmarks import copy_fault
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.lora import LoraArguments, add_lora, count_parameters, save_adapter
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.training.command_line import parse_arguments, refuse_used_folder
from modeling_gadms.training.run_report import gallery_facts, metrics_table
from modeling_gadms.training.starting_points import load_starting_point

COPY_OPTIONS = ("annotations", "image_root", "on_count_mismatch", "on_missing_images", "validation_persons")
ROLES = ("train", "validation", "test")


@dataclass
class FinetuneArguments:
    _argument_group_name = "model and data"

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a GA-DMS, a CLIP or other towers."})
    dataset_name: str = field(metadata={"help": "A benchmark's name, or `synthetic`."})
    data_root: str | None = field(default=None, metadata={"help": "The benchmark's folder, or the one above it."})
    annotations: str | None = field(default=None, metadata={"help": "Its json, if not below --data_root."})
    image_root: str | None = field(default=None, metadata={"help": "Where its images lie, if not below --data_root."})
    on_count_mismatch: str = field(default="error", metadata={"help": "`warn`: accept an incomplete benchmark."})
    on_missing_images: str = field(default="error", metadata={"help": "`skip`: leave out images that are missing."})
    validation_persons: int | None = field(default=None, metadata={"help": "Number of persons to hold out of train."})
    select_on_test: bool = field(default=False, metadata={"help": "Choose the best epoch on test, and record that."})
    image_size: list[int] = field(default_factory=lambda: [384, 128], metadata={"help": "For a CLIP: height, width."})
    num_persons: int = field(default=4000, metadata={"help": "Synthetic: persons in train, two images each."})
    noise_rate: float = field(default=0.0, metadata={"help": "Synthetic: share of false attributes in training."})

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is a height and a width in pixels, as 384 128; got {self.image_size}")


def load_splits(
    args: FinetuneArguments, image_size: tuple[int, int], seed: int
) -> dict[str, tuple[str, datasets.Dataset]]:
    """`train`, `validation` (on which the best epoch is chosen) and `test`, each with its name in the benchmark."""
    if args.dataset_name == "synthetic":
        options = {"num_train_persons": args.num_persons, "noise_rate": args.noise_rate, "seed": seed}
        builder = WebPerson(config_name="synthetic", image_size=image_size, **options)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    elif args.data_root is None:
        raise DataError(f"{args.dataset_name}: where is it? Pass its folder as --data_root")
    else:
        options = {name: getattr(args, name) for name in COPY_OPTIONS}
        splits = load_benchmark(args.dataset_name, args.data_root, **options)
    train = "train" if "train" in splits else "train_minus_validation"
    validation = "validation" if "validation" in splits else "validation_from_train"
    if args.select_on_test:
        validation = "test"
    elif validation not in splits:
        raise DataError(
            f"{args.dataset_name}: no validation split to choose the best epoch on; hold persons out of train with "
            "--validation_persons 200, or choose on test with --select_on_test, which metrics.json will record"
        )
    return {role: (name, splits[name]) for role, name in zip(ROLES, (train, validation, "test"), strict=True)}


def report(
    trainer: GADMSFineTuningTrainer,
    names: dict[str, str],
    metrics: dict[str, dict[str, float]],
    run: dict[str, Any],
) -> None:
    """Write metrics.json, and print the table."""
    state = trainer.state
    results = {
        "metrics": metrics,
        "splits": names,
        "best_epoch_chosen_on": names["validation"],
        "best": {"step": state.best_global_step, trainer.args.metric_for_best_model: state.best_metric},
        **run,
    }
    if names["validation"] == "test":
        results["warning"] = "the best epoch was chosen on the test set: these figures are optimistic"
    write_json(os.path.join(trainer.args.output_dir, "metrics.json"), results)
    part = f"not figures of {run['arguments']['dataset_name']}: {run['incomplete']}\n" if run["incomplete"] else ""
    print(f"\n{metrics_table(metrics)}\n\n{part}best epoch chosen on {names['validation']}", flush=True)
    print(f"{results['seconds']:.0f} s; checkpoint and metrics.json in {trainer.args.output_dir}", flush=True)


@command
def main(arguments: list[str] | None = None) -> None:
    start = time.time()
    kinds = (FinetuneArguments, LoraArguments, GADMSFineTuningArguments)
    args, lora, training = parse_arguments(kinds, arguments, description=__doc__)
    refuse_used_folder(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    pretrained, processor = load_starting_point(args.model_name_or_path, tuple(args.image_size))
    splits = load_splits(args, pretrained.config.vision_config.image_size, training.seed)
    train, validation, test = (dataset for _, dataset in splits.values())
    model = GADMSForFineTuning.from_pre_training(pretrained, num_persons=len(set(train["person_id"])))
    tuned = add_lora(model, lora) if lora.lora else model
    trainable, total = count_parameters(tuned)
    trainer = GADMSFineTuningTrainer(tuned, training, processor, train_dataset=train, eval_dataset=validation)

    def measure(when: str) -> dict[str, float]:
        found = trainer.evaluate(test, metric_key_prefix=when)
        return {name.removeprefix(f"{when}_"): value for name, value in found.items() if "2" in name}

    before = measure("before")
    if trainer.is_world_process_zero():
        print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.1%})", flush=True)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics = {"before": before, "after": measure("test")}
    trainer.save_model()
    if trainer.is_world_process_zero():
        if isinstance(trainer.model, PeftModel):
            save_adapter(trainer.model, os.path.join(training.output_dir, "adapter"))
        run = {"incomplete": copy_fault(args.dataset_name, dict(splits.values())), **gallery_facts(trainer.measured)}
        run |= {"trainable_parameters": trainable, "parameters": total, "seconds": time.time() - start}
        run |= {"arguments": vars(args) | vars(lora), "training_arguments": training.to_dict()}
        report(trainer, {role: name for role, (name, _) in splits.items()}, metrics, run)


if __name__ == "__main__":
    sys.exit(main())
