"""Training arguments of GA-DMS; the defaults are the paper's pre-training recipe."""

import glob
import os
from dataclasses import dataclass, field

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.upload import download_last_checkpoint
from ..masking_gadms import DualMasking


@dataclass
class GADMSTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the paper's defaults and the constants of dual masking and augmentation.

    Raises:
        ValueError: a constant outside its range, when constructed.
    """

    # the paper, section 4.1: Adam, 30 epochs of which 5 warm-up, 512 pairs on 8 GPUs
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate (paper; the released script: 1e-5)."}
    )
    adam_epsilon: float = field(default=1e-3, metadata={"help": "Epsilon of Adam (released code)."})
    weight_decay: float = field(default=4e-5, metadata={"help": "L2 weight decay of Adam (released code)."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over the images (paper)."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs a process (paper: 8 x 64)."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none (released code)."})
    warmup_epochs: float = field(default=5.0, metadata={"help": "Epochs of linear warm-up, then cosine to 0 (paper)."})
    warmup_factor: float = field(default=0.1, metadata={"help": "Share of the learning rate to start from."})

    masking: str = field(
        default="gradient_attention",
        metadata={
            "help": "`gradient_attention` is GA-DMS; `none` trains the towers alone, by SDM on whole captions.",
            "choices": ["gradient_attention", "none"],
        },
    )
    hidden_spans: str | None = field(
        default=None,
        metadata={
            "help": "Hide before alignment, in place of words of low score, what the columns caption<n>_NAME list: "
            "`hidden_spans` where examples/hide_words.py has been."
        },
    )
    mtp_weight: float = field(default=0.4, metadata={"help": "Weight of masked token prediction (paper)."})
    alpha_noise: float = field(default=0.2, metadata={"help": "Highest probability of the noise mask (paper)."})
    alpha_info: float = field(default=0.3, metadata={"help": "Highest probability of the prediction mask (paper)."})
    steepness: float = field(default=20.0, metadata={"help": "Slope of both probabilities, lambda (paper)."})
    gamma_noise: float = field(default=0.9, metadata={"help": "Threshold on 1 - score (released code)."})
    gamma_info: float = field(default=0.1, metadata={"help": "Threshold on score (released code)."})

    crop_padding: int = field(default=10, metadata={"help": "Pixels padded around before the random crop (paper)."})
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip (paper)."})
    erasing_probability: float = field(default=0.5, metadata={"help": "Probability of random erasing (paper)."})

    # what this trainer needs of its parent
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows reach the collator whole."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Pairs carry no labels."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Every batch fills all processes alike."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops training."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Loggers to report to."})

    def __post_init__(self):
        super().__post_init__()
        if self.resume_from_checkpoint == "True":  # as it comes from a command line
            self.resume_from_checkpoint = self.last_checkpoint()
            if self.resume_from_checkpoint is None:
                raise ValueError(f"resume_from_checkpoint: there is no checkpoint in {self.output_dir}")
        elif self.resume_from_checkpoint == "hub":
            self.resume_from_checkpoint = self.checkpoint_of_hub()
        self.masks()
        if self.masking == "none" and self.hidden_spans is not None:
            raise ValueError(f"hidden_spans={self.hidden_spans} hides words, and masking=none hides none: choose one")
        for name in ("flip_probability", "erasing_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, between 0 and 1; got {getattr(self, name)}")
        for name in ("mtp_weight", "warmup_epochs", "warmup_factor", "crop_padding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")

    def last_checkpoint(self) -> str | None:
        """Folder of the newest whole checkpoint in `output_dir`, if there is one.

        One that a killed run left half written lacks its state, which is written last.
        """
        folders = glob.glob(os.path.join(glob.escape(self.output_dir), f"{PREFIX_CHECKPOINT_DIR}-*"))
        steps = {int(step): folder for folder in folders if (step := folder.rpartition("-")[2]).isdigit()}
        newest_first = (steps[step] for step in sorted(steps, reverse=True))
        return next(filter(_has_state, newest_first), None)

    def checkpoint_of_hub(self) -> str:
        """Bring what `hub_strategy="checkpoint"` left at `hub_model_id` into `output_dir`; gives its folder."""
        if self.hub_model_id is None:
            raise ValueError("resume_from_checkpoint=hub: name the repository by hub_model_id")
        with self.main_process_first(desc="the last checkpoint on the Hub"):
            return download_last_checkpoint(self.hub_model_id, self.output_dir, self.hub_revision, self.hub_token)

    def joint_batch_size(self) -> int:
        """Pairs that one optimiser step compares: those of all processes and all accumulated chunks."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def refuse_unfilled_batch(self, num_rows: int) -> None:
        """Raise `ValueError` where an epoch of so many rows would be dropped whole."""
        if num_rows < self.joint_batch_size() and self.dataloader_drop_last:
            raise ValueError(
                f"{num_rows} rows do not fill one batch of {self.joint_batch_size()}; lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or pass dataloader_drop_last=False on "
                "one process"
            )

    def loss_options(self) -> dict:
        """What the model's `forward` takes beside the batch."""
        return {"masking": self.masks(), "mtp_weight": self.mtp_weight}

    def masks(self) -> DualMasking | None:
        """The constants of the masks, or `None` when training without masks."""
        if self.masking == "none":
            return None
        alpha_noise = self.alpha_noise if self.hidden_spans is None else 0.0
        return DualMasking(alpha_noise, self.alpha_info, self.steepness, self.gamma_noise, self.gamma_info)


def _has_state(folder: str) -> bool:
    try:
        TrainerState.load_from_json(os.path.join(folder, TRAINER_STATE_NAME))
    except (OSError, ValueError):
        return False
    return True
