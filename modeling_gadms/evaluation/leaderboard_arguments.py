"""What `examples/leaderboard.py` is told."""

import os
from dataclasses import dataclass, field

from .embedding_cache import DEFAULT_FOLDER
from .published_results import PROTOCOLS


@dataclass
class LeaderboardArguments:
    model: list[str] = field(metadata={"help": "Folders or Hub ids; trainings of one model: a sweep, or a,b,c."})
    benchmark: list[str] = field(metadata={"help": "Names of benchmarks, `synthetic`, or folders."})
    as_released: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders of models that others trained and chose; those of the Hub count as such."},
    )
    matrix: bool = field(default=False, metadata={"help": "Also a table of models by training and test set."})
    trained_on: list[str] = field(
        default_factory=list,
        metadata={"help": "Of each model, in order, where its folder does not say: benchmarks, a,b; `none` for none."},
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder that holds the benchmarks."})
    protocol: str = field(
        default="fine-tuned", metadata={"help": "Published figures to set beside.", "choices": PROTOCOLS[:2]}
    )
    image_size: list[int] = field(default_factory=lambda: [128, 64], metadata={"help": "Synthetic: height, width."})
    num_persons: int = field(default=400, metadata={"help": "Synthetic: persons."})
    output_dir: str = field(default=os.path.join("runs", "leaderboard"), metadata={"help": "Where to write."})
    cache_dir: str = field(default=DEFAULT_FOLDER, metadata={"help": "Where embeddings are kept."})
    batch_size: int = field(default=64, metadata={"help": "Images, and captions, at a time."})
    seed: int = field(default=0, metadata={"help": "Decides intervals and synthetic persons."})

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.as_released) - set(self.model)):
            raise ValueError(f"--as_released: {', '.join(unknown)} is not among --model")
        if self.trained_on and (not self.matrix or len(self.trained_on) != len(self.model)):
            raise ValueError("--trained_on belongs to --matrix True, and names what each of --model was trained on")
