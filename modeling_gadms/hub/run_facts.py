"""The facts of a training run, written to `run_facts.json` next to its weights, for the model card."""

import os
import platform
import re
from typing import Any

import datasets
import torch
import transformers

from ..masking_gadms import DualMasking
from ..training.arguments import GADMSTrainingArguments

FACTS_FILE = "run_facts.json"
RECIPE = (
    "learning_rate",
    "adam_epsilon",
    "weight_decay",
    "ema_decay",
    "warmup_epochs",
    "seed",
    "masking",
    "mtp_weight",
    "sigmoid_bias",
    "id_weight",
    "mask_probability",
    "alpha_noise",
    "alpha_info",
)
# settings that a run of other masks ignores, and so does not record
_OF_SCORES, _OF_CHANCE = {"alpha_noise", "alpha_info"}, {"mask_probability"}
_MEASURED = re.compile(r"(eval|test)_(?:(.+)_)?(t2i|i2t)_(R@1|R@5|R@10|mAP|mINP)")


def facts_of_run(trainer: Any) -> dict:
    """Facts of a [`GADMSTrainer`], at its current step: model, data, recipe, hardware and metrics, ready for JSON.

    They say nothing about the environment, folders or accounts.
    """
    args, state = trainer.args, trainer.state
    seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.retriever().parameters()),
        "training_data": data_name(trainer.train_dataset and trainer.train_dataset.dataset),
        "training_items": length(trainer.train_dataset),
        "test_data": data_name(trainer.eval_dataset),
        "test_images": length(trainer.eval_dataset),
        "recipe": recipe_of(args),
        "pairs_a_step": args.joint_batch_size(),
        "epochs": state.epoch,
        "steps": state.global_step,
        "max_steps": state.max_steps,
        "seconds": seconds[-1] if seconds else None,
        "processes": args.world_size,
        "hardware": hardware(args.device),
        "software": {"torch": torch.__version__, "transformers": transformers.__version__},
        "metrics": metrics_of_weights(state.log_history, state.global_step, args.load_best_model_at_end),
    }


def recipe_of(args: GADMSTrainingArguments) -> dict[str, Any]:
    """The settings of `RECIPE` that the run uses, and its precision."""
    values = args.to_dict()
    masks = args.masks()
    if masks is None:
        ignored = _OF_SCORES | _OF_CHANCE | {"mtp_weight"}
    else:
        ignored = _OF_CHANCE if isinstance(masks, DualMasking) else _OF_SCORES
    recipe = {name: values[name] for name in RECIPE if values.get(name) is not None and name not in ignored}
    recipe["precision"] = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32"
    if args.hidden_spans is not None:  # these are hidden instead of words chosen by their scores
        recipe |= {"hidden_spans": args.hidden_spans, "alpha_noise": 0.0}
    if args.draw_words:
        recipe["draw_words"] = True
    if args.patch_dropout:
        recipe |= {"patch_dropout": args.patch_dropout, "patch_dropout_until": args.patch_dropout_until}
    return recipe


def metrics_of_weights(log_history: list[dict], step: int, best_at_end: bool) -> dict[str, dict[str, float]]:
    """Retrieval figures of the current weights: `{"": {"t2i_R@1": ...}}`, one key per named test set.

    Figures of an earlier step do not belong to them; nor, where the best weights were restored at the end of training,
    do those from before that. Figures with the prefix `test_` take precedence over those with `eval_`, by which the
    checkpoint was chosen.
    """
    ends = [number for number, entry in enumerate(log_history) if "train_runtime" in entry]
    if best_at_end and ends:
        log_history = log_history[ends[-1] :]
    found: dict[str, dict[str, dict[str, float]]] = {"eval": {}, "test": {}}
    for entry in log_history:
        for key, value in entry.items() if entry["step"] == step else ():
            if match := _MEASURED.fullmatch(key):
                prefix, name, direction, metric = match.groups()
                found[prefix].setdefault(name or "", {})[f"{direction}_{metric}"] = value
    measured = found["test"] or found["eval"]
    # of several sets, not the mean, which is no figure of any
    return {name: metrics for name, metrics in measured.items() if name} or measured


def data_name(dataset: object) -> str | None:
    """The name that its builder gives it, if it has one."""
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        return None
    info = dataset.info
    parts = [info.dataset_name or info.builder_name, info.config_name]
    return " ".join(part for part in parts if part and part != "default") or None


def length(rows: Any) -> int | None:
    """The number of rows, where they can be counted."""
    if rows is None or isinstance(rows, dict | datasets.IterableDataset | torch.utils.data.IterableDataset):
        return None
    return len(rows)


def hardware(device: torch.device) -> str:
    """The accelerator of one process, or else its processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({device.type}, {os.cpu_count()} cores)"
