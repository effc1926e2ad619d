"""Training arguments of GA-DMS; the defaults are the paper's pre-training recipe."""

import glob
import json
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import SchedulerType, TrainerState, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import OptimizerNames

from ..hub.upload import download_last_checkpoint
from ..masking_gadms import DualMasking, Masking
from .image_decoding import PILLOW, refuse_way

ADAM = "adam"  # torch's Adam with L2 weight decay, which `OptimizerNames` does not have

# loggers whose package has another name
PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}

ARGUMENTS_FILE = "training_args.json"  # in a checkpoint
OPTIMISATION = "optimiser and schedule in place of the recipe's"
DECISIVE = ("recipe", OPTIMISATION, "masks", "images")  # groups of arguments that decide the result

NOT_DIVIDED = ("cpu",)  # devices on which accelerate 1.15 takes DDP where FSDP was asked for

# arguments of the parent that have no effect on this training: another value than the parent's default is refused
WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "include_for_metrics",
    "include_num_input_tokens_seen",
    "label_smoothing_factor",
    "length_column_name",
    "liger_kernel_config",
    "neftune_noise_alpha",
    "optim_target_modules",
    "prediction_loss_only",
    "train_sampling_strategy",
    "use_cache",
    "use_liger_kernel",
)

# help of options of transformers.TrainingArguments that matter here; an empty text stands for the field's own
_RUN = {
    "output_dir": "Folder of the checkpoints and results.",
    "resume_from_checkpoint": "Continue: `True` for the last checkpoint in output_dir, a checkpoint's folder, or "
    "`hub` for the one that hub_strategy=checkpoint pushed.",
    "seed": "Seed of everything random.",
    "data_seed": "Seed of the order and augmentation of the data; by default seed.",
    "bf16": "Train in mixed precision, bfloat16.",
    "use_cpu": "Train on the CPU even if there is a GPU.",
    "compile_layers": "",
    "augment_on_device": "",
    "activation_checkpointing": "Recompute activations in the backward pass, to save memory.",
    "per_device_eval_batch_size": "Images, and captions, at a time when retrieval is measured.",
    "dataloader_num_workers": "Processes that read and prepare images ahead.",
    "logging_steps": "Steps between logs.",
    "report_to": "",
    "disable_tqdm": "Show no progress bars.",
}
_SAVING = {
    "eval_strategy": "When to measure retrieval: `no`, `steps` or `epoch`.",
    "eval_steps": "Steps between measurements, with eval_strategy=steps.",
    "save_strategy": "When to save a checkpoint: `no`, `steps`, `epoch` or `best`.",
    "save_steps": "Steps between checkpoints, with save_strategy=steps.",
    "save_total_limit": "Checkpoints to keep; by default all.",
    "load_best_model_at_end": "End with the weights of the best checkpoint.",
    "metric_for_best_model": "Metric that decides which checkpoint is the best, as t2i_R@1.",
    "greater_is_better": "Whether a higher value of that metric is better.",
}
_HUB = {
    "push_to_hub": "Push checkpoints, with code and card, to the Hub.",
    "hub_model_id": "Repository, `org/name`; by default named after output_dir.",
    "hub_strategy": "What to push: `end` (the result), `every_save` (each checkpoint in place of the last), "
    "`checkpoint` (also the state to resume from) or `all_checkpoints`.",
    "hub_revision": "Branch to push to.",
    "hub_private_repo": "Create the repository as private.",
    "hub_token": "Token; by default the one of `hf auth login`.",
}


@dataclass
class GADMSTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the paper's defaults and the constants of dual masking and augmentation.

    Raises:
        ValueError: a constant is outside its range.
    """

    HELP_GROUPS: ClassVar[dict[str, dict[str, str]]] = {
        "recipe": {
            "learning_rate": "",
            "num_train_epochs": "",
            "max_steps": "Steps, in place of num_train_epochs; -1 for none.",
            "warmup_epochs": "",
            "warmup_factor": "",
            "per_device_train_batch_size": "",
            "gradient_accumulation_steps": "Chunks per step, each of per_device_train_batch_size pairs; the loss is "
            "that of the whole batch.",
            "adam_epsilon": "",
            "weight_decay": "",
            "max_grad_norm": "",
            "ema_decay": "",
            "mtp_weight": "",
            "matching_weight": "",
            "sigmoid_bias": "",
        },
        OPTIMISATION: {
            "warmup_steps": "Steps of warm-up (or, below 1, their share of all steps), in place of warmup_epochs.",
            "lr_scheduler_type": "",
            "lr_scheduler_kwargs": "Arguments of the schedule, as JSON.",
            "layer_decay": "",
            "optim": "",
        },
        "masks": {
            "masking": "",
            "alpha_noise": "",
            "alpha_info": "",
            "steepness": "",
            "gamma_noise": "",
            "gamma_info": "",
            "hidden_spans": "",
            "draw_words": "",
            "swap_negatives": "",
        },
        "images": {
            "image_decoding": "",
            "crop_padding": "",
            "flip_probability": "",
            "erasing_probability": "",
            "patch_dropout": "",
            "patch_dropout_until": "",
        },
        "run": _RUN,
        "measuring and saving": _SAVING,
        "Hub": _HUB,
    }

    if TYPE_CHECKING:
        output_dir: str = "trainer_output"  # the parent's `None` becomes this

    # the paper, section 4.1: Adam, 30 epochs of which 5 warm-up, 512 pairs on 8 GPUs
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate (paper; the released script: 1e-5)."}
    )
    adam_epsilon: float = field(default=1e-3, metadata={"help": "Epsilon of Adam (released code)."})
    weight_decay: float = field(default=4e-5, metadata={"help": "L2 weight decay of Adam (released code)."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over the images (paper)."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs per process (paper: 8 x 64)."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none (released code)."})
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Measure and end with a moving average of the weights, of this decay, as 0.999."},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Learning rate of each layer of a tower, relative to the next above, as 0.75; 1: equal."},
    )
    warmup_epochs: float = field(default=5.0, metadata={"help": "Epochs of linear warm-up, then cosine to 0 (paper)."})
    warmup_factor: float = field(
        default=0.1, metadata={"help": "Learning rate at the start of warm-up, as a share of the peak."}
    )

    optim: str = field(
        default=ADAM, metadata={"help": "Optimiser: `adam` (paper), or a name of transformers, as `adamw_torch`."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Schedule after warm-up (paper: cosine), or another of transformers'."}
    )

    masking: str = field(
        default="gradient_attention",
        metadata={
            "help": "`gradient_attention` is GA-DMS; `none` trains the towers by SDM on whole captions.",
            "choices": ["gradient_attention", "none"],
        },
    )
    hidden_spans: str | None = field(
        default=None,
        metadata={
            "help": "Suffix of columns caption<n>_SUFFIX that list the words to hide before alignment, in place of "
            "words of low score; examples/repair_captions.py writes them with the suffix `hidden_spans`."
        },
    )
    draw_words: bool = field(
        default=False,
        metadata={
            "help": "In each epoch, draw the words of captions from what is likely to be true; "
            "examples/repair_captions.py --mode sample writes the columns caption<n>_posterior."
        },
    )
    mtp_weight: float = field(default=0.4, metadata={"help": "Weight of masked token prediction (paper)."})
    matching_weight: float = field(default=0.0, metadata={"help": "Weight of image-text matching (ALBEF: 1)."})
    sigmoid_bias: float | None = field(
        default=None,
        metadata={"help": "Align by SigLIP's sigmoid loss with this bias, such as -10, in place of SDM."},
    )
    swap_negatives: int = field(
        default=0,
        metadata={
            "help": "Copies of each caption with a word swapped for another of its family, negatives of its own image "
            "in SDM; for captions that are aligned whole, as with alpha_noise=0 or masking=none."
        },
    )
    alpha_noise: float = field(default=0.2, metadata={"help": "Highest probability of the noise mask (paper)."})
    alpha_info: float = field(default=0.3, metadata={"help": "Highest probability of the prediction mask (paper)."})
    steepness: float = field(default=20.0, metadata={"help": "Slope of both probabilities (lambda in the paper)."})
    gamma_noise: float = field(default=0.9, metadata={"help": "Threshold on 1 - score (released code)."})
    gamma_info: float = field(default=0.1, metadata={"help": "Threshold on score (released code)."})

    crop_padding: int = field(
        default=10, metadata={"help": "Pixels added on each side before the random crop (paper)."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip (paper)."})
    erasing_probability: float = field(default=0.5, metadata={"help": "Probability of random erasing (paper)."})

    patch_dropout: float = field(
        default=0.0, metadata={"help": "Share of an image's patches left out in training, for speed (FLIP: 0.5)."}
    )
    patch_dropout_until: float = field(
        default=0.8, metadata={"help": "Share of all steps after which images are whole, with patch_dropout."}
    )

    compile_layers: bool = field(
        default=False,
        metadata={"help": "Compile the layers and the score: minutes at the start, and faster steps on a GPU."},
    )

    augment_on_device: bool | None = field(
        default=None,
        metadata={
            "help": "Normalise and augment images on the device: the same pixels, a quarter of the bytes from the "
            "loader and half of its work; by default on a GPU."
        },
    )

    image_decoding: str = field(
        default=PILLOW,
        metadata={
            "help": "How training images are read. `pillow`: as everywhere else; `torch`: faster, resized by torch, "
            "to pixels that differ a little, and decoded by torchcodec where it is installed; `device`: on the GPU."
        },
    )

    # requirements of the trainer
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator needs all columns."}
    )
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Pairs carry no labels."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop rows that do not fill a batch of all processes."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay False: a loss that is not finite stops the training."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Loggers, such as tensorboard, wandb or trackio."}
    )

    def __post_init__(self) -> None:
        wanted = self.optim
        if wanted not in (ADAM, *OptimizerNames):
            names = ", ".join([ADAM, *(each.value for each in OptimizerNames)])
            raise ValueError(f"optim={wanted} is no optimiser; choose one of {names}")
        if wanted == ADAM:  # the parent takes names of its own only
            self.optim = OptimizerNames.ADAMW_TORCH
        super().__post_init__()
        self.optim = wanted if wanted == ADAM else self.optim
        self._refuse_what_has_no_effect()
        self._refuse_missing_loggers()
        if self.device.type == "cpu":  # nothing to pin memory for: torch would warn of it in every epoch
            self.dataloader_pin_memory = False
        elif self.dataloader_pin_memory:  # batches go to the device while it works
            assert isinstance(self.accelerator_config, AcceleratorConfig)  # the parent has read it
            self.accelerator_config.non_blocking = True
        if self.resume_from_checkpoint is not None:
            self.resume_from_checkpoint = self._checkpoint_to_resume(self.resume_from_checkpoint)
        refuse_way(self.image_decoding, self.device)
        self.masks()  # refuses constants outside their range
        self._refuse_divided_layers()
        if self.masking == "none" and self.hidden_spans is not None:
            raise ValueError(f"hidden_spans={self.hidden_spans} hides words, and masking=none hides none: choose one")
        if self.draw_words and self.hidden_spans is not None:
            raise ValueError(f"draw_words moves the places that hidden_spans={self.hidden_spans} lists: choose one")
        for name in ("flip_probability", "erasing_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, between 0 and 1; got {getattr(self, name)}")
        if not 0 <= self.patch_dropout < 1 or not 0 <= self.patch_dropout_until <= 1:
            raise ValueError(
                f"patch_dropout={self.patch_dropout} and patch_dropout_until={self.patch_dropout_until} are shares: "
                "the first from 0 to below 1, the second from 0 to 1"
            )
        for name in ("mtp_weight", "matching_weight", "warmup_epochs", "warmup_factor", "crop_padding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1; got {self.ema_decay}")
        if self.matching_weight > 0 and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"matching_weight={self.matching_weight} draws negatives from the whole batch, of which a chunk of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} holds a part: leave that out, and "
                "save memory by activation_checkpointing"
            )
        self._refuse_unfit_swaps()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay lies above 0 and at most at 1; got {self.layer_decay}")

    def _refuse_unfit_swaps(self) -> None:
        if self.swap_negatives < 0:
            raise ValueError(f"swap_negatives must not be negative; got {self.swap_negatives}")
        if not self.swap_negatives:
            return
        wanted = f"swap_negatives={self.swap_negatives}"
        if self.sigmoid_bias is not None:
            raise ValueError(
                f"{wanted} are negatives of SDM, and sigmoid_bias={self.sigmoid_bias} replaces it: choose one"
            )
        if self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"{wanted} enter the loss of a whole batch, of which a chunk of gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} holds a part: leave that out, and save memory by "
                "activation_checkpointing"
            )
        masks = self.masks()
        if self.hidden_spans is not None or (masks is not None and (masks.in_place or _hides(masks))):
            raise ValueError(
                f"{wanted} are whole captions, which could be told by their masks alone from captions with hidden "
                "words: take alpha_noise=0 or masking=none, without hidden_spans and mask_captions_in_place"
            )

    def _refuse_what_has_no_effect(self) -> None:
        defaults = {field.name: field for field in fields(TrainingArguments)}
        for name in WITHOUT_EFFECT:
            default = defaults[name]
            usual = default.default if default.default_factory is MISSING else default.default_factory()
            if getattr(self, name) not in (usual, None) and str(getattr(self, name)) != str(usual):
                raise ValueError(f"{name}={getattr(self, name)} has no effect on this training: leave it at {usual}")
        if self.remove_unused_columns or self.logging_nan_inf_filter:
            name = "remove_unused_columns" if self.remove_unused_columns else "logging_nan_inf_filter"
            raise ValueError(f"{name} must stay False: {self.__dataclass_fields__[name].metadata['help']}")

    def _refuse_missing_loggers(self) -> None:
        """Refuse a logger that does not exist or is not installed; the Trainer would, when all else is loaded."""
        if not self.report_to:
            return
        # here, since it imports whatever can log
        from transformers.integrations.integration_utils import (
            INTEGRATION_TO_CALLBACK,
            get_available_reporting_integrations,
        )

        installed = [*get_available_reporting_integrations(), "flyte"]  # which is not looked for there
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise ValueError(f"report_to={name}: no such logger; take one of {', '.join(INTEGRATION_TO_CALLBACK)}")
            if name not in installed:
                raise ValueError(f"report_to={name} is not installed: pip install {PACKAGES.get(name, name)}")

    def _refuse_divided_layers(self) -> None:
        """Refuse layers divided among processes, by the arguments or by the launcher, where they are used whole."""
        needed_by = ""
        if self.ema_decay is not None:
            needed_by = f"the average of ema_decay={self.ema_decay}"
        elif self.gradient_accumulation_steps > 1:
            needed_by = f"chunks of gradient_accumulation_steps={self.gradient_accumulation_steps}"
        masking = self.masks()
        if is_deepspeed_zero3_enabled():
            divider = "DeepSpeed ZeRO-3"
            if not needed_by and masking is not None and masking.uses_scores:
                needed_by = f"the scores of masking={self.masking}"
        elif self.fsdp or string_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
            divider = "FSDP"
            plugin = self.fsdp_plugin_args or {"fsdp_version": os.environ.get("FSDP_VERSION", "1")}
            if int(plugin["fsdp_version"]) != 2:
                raise ValueError(
                    "FSDP of version 1 gives layers that cannot be put together for a while: take version 2"
                )
            if self.device.type in NOT_DIVIDED:
                raise ValueError(
                    f"FSDP: on the device {self.device.type} accelerate leaves layers whole without a word: leave it "
                    "out, or train on GPUs"
                )
            if not needed_by and self.eval_on_start:
                needed_by = "the measurement of eval_on_start"
        else:
            return
        if needed_by:
            raise ValueError(
                f"{divider} divides layers, and {needed_by} would need them whole: leave it out, and save memory by "
                "activation_checkpointing"
            )

    def _checkpoint_to_resume(self, wanted: str | bool) -> str:
        """Folder of the checkpoint that `resume_from_checkpoint` stands for."""
        if wanted == "hub":
            return self.checkpoint_of_hub()
        if wanted is True or wanted == "True":  # a string from the command line
            last = self.last_checkpoint()
            if last is None:
                raise ValueError(f"resume_from_checkpoint: there is no checkpoint in {self.output_dir}")
            return last
        if not isinstance(wanted, str) or not _has_state(wanted):
            raise ValueError(f"resume_from_checkpoint: {wanted} is not a complete checkpoint; True takes the last one")
        return wanted

    def last_checkpoint(self) -> str | None:
        """Folder of the newest complete checkpoint in `output_dir`, if any.

        A checkpoint that a killed run left half written lacks its state, which is written last.
        """
        folders = glob.glob(os.path.join(glob.escape(self.output_dir), f"{PREFIX_CHECKPOINT_DIR}-*"))
        steps = {int(step): folder for folder in folders if (step := folder.rpartition("-")[2]).isdigit()}
        newest_first = (steps[step] for step in sorted(steps, reverse=True))
        return next(filter(_has_state, newest_first), None)

    def changes_since(self, checkpoint: str) -> list[str]:
        """What of the recipe was otherwise when the checkpoint was written, as `seed=1 (before: 0)`."""
        file = os.path.join(checkpoint, ARGUMENTS_FILE)
        if not os.path.isfile(file):
            return []
        with open(file, encoding="utf-8") as stream:
            before = json.load(stream)
        now = json.loads(json.dumps(self.to_dict()))
        names = [name for group in DECISIVE for name in self.HELP_GROUPS[group]] + ["seed", "data_seed"]
        return [
            f"{name}={now[name]} (before: {before[name]})"
            for name in names
            if name in before and before[name] != now[name]
        ]

    def checkpoint_of_hub(self) -> str:
        """Download into `output_dir` the checkpoint that `hub_strategy="checkpoint"` pushed; return its folder."""
        if self.hub_model_id is None:
            raise ValueError("resume_from_checkpoint=hub: name the repository with hub_model_id")
        with self.main_process_first(desc="the last checkpoint on the Hub"):
            return download_last_checkpoint(self.hub_model_id, self.output_dir, self.hub_revision, self.hub_token)

    def joint_batch_size(self) -> int:
        """Pairs compared in one optimiser step: those of all processes and all accumulated chunks."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def refuse_unfilled_batch(self, num_rows: int) -> None:
        """Raise `ValueError` if an epoch of that many rows would be dropped entirely."""
        if num_rows < self.joint_batch_size() and self.dataloader_drop_last:
            raise ValueError(
                f"{num_rows} rows do not fill one batch of {self.joint_batch_size()}; lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or pass dataloader_drop_last=False on "
                "one process"
            )

    def loss_options(self) -> dict[str, Any]:
        """Arguments of the model's `forward` in addition to the batch."""
        return {
            "masking": self.masks(),
            "mtp_weight": self.mtp_weight,
            "matching_weight": self.matching_weight,
            "sigmoid_bias": self.sigmoid_bias,
        }

    def masks(self) -> Masking | None:
        """Constants of the masks, or `None` to train without masks."""
        if self.masking == "none":
            return None
        alpha_noise = self.alpha_noise if self.hidden_spans is None else 0.0
        return DualMasking(alpha_noise, self.alpha_info, self.steepness, self.gamma_noise, self.gamma_info)


def _hides(masks: Masking) -> bool:
    """Whether words are hidden before alignment."""
    return bool(masks.noise_probability(torch.zeros(1)) > 0)  # which is highest for a score of 0


def _has_state(folder: str) -> bool:
    try:
        TrainerState.load_from_json(os.path.join(folder, TRAINER_STATE_NAME))
    except (OSError, ValueError):
        return False
    return True
