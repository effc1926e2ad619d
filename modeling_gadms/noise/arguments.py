"""Arguments of repairing captions."""

import math
from dataclasses import dataclass, field

import torch

from dataset_webperson.release_shards import ROWS_PER_SHARD

MODES = "repair", "sample", "hide"


@dataclass
class RepairArguments:
    """What to do with the words that speak against their image, and how these are learnt."""

    _argument_group_name = "repair"

    output_dir: str = field(metadata={"help": "Folder to write; must not exist."})
    mode: str = field(
        default="repair",
        metadata={
            "help": "`repair` puts the likeliest word in; `sample` lists what could be true, for training with "
            "draw_words; `hide` lists doubted words, for training with hidden_spans.",
            "choices": list(MODES),
        },
    )
    families: str | None = field(
        default=None,
        metadata={
            "help": "JSON of the words that can stand in each other's place (default: of a person's looks and "
            "things). Images are mirrored, so none may tell left from right."
        },
    )
    steps: int = field(default=1200, metadata={"help": "Batches to learn from."})
    batch_size: int = field(
        default=64, metadata={"help": "Images per batch; of `hide`, a word must find its own among them."}
    )
    tower_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the image tower; 0 freezes it. The small CLIP wants 5e-4."}
    )
    threshold: float = field(
        default=0.5,
        metadata={
            "help": "Of `hide`, in nats: a word is hidden if it makes its image exp(threshold) times less likely. "
            "With exact evidence and a share r of false words, it is more likely false than true at log(1 / (2 r)): "
            "0.5 for 0.3."
        },
    )
    rows_per_shard: int = field(default=ROWS_PER_SHARD, metadata={"help": "Rows per parquet file."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images ahead."})
    seed: int = field(default=42, metadata={"help": "Random seed; use that of pre-training, for the same test split."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Device to compute on."}
    )

    def __post_init__(self) -> None:
        for name in ("steps", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, or there is nothing to tell apart; got {self.batch_size}"
            )
        if not 0 <= self.tower_learning_rate < math.inf:
            raise ValueError(f"tower_learning_rate must be a number, and not negative; got {self.tower_learning_rate}")
        if not self.threshold > 0:
            raise ValueError(
                f"threshold must be above 0, or words that say nothing are hidden too; got {self.threshold}"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either
            raise ValueError(f"device: torch finds no {self.device} here, try cpu ({error})") from None
        if self.families is not None and self.mode == "hide":
            raise ValueError("families belong to --mode repair and sample: hide doubts each token by itself")
