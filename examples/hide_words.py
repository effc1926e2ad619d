r"""Find the caption words that speak against their image, and write a data set in which pre-training can hide them.

    python examples/hide_words.py --dataset_name synthetic --image_size 64 32 --tower_learning_rate 5e-4 \
        --output_dir runs/hidden                                                       # offline, a few minutes
    accelerate launch examples/pretrain.py examples/pretrain_demo.yaml --dataset_name runs/hidden \
        --hidden_spans hidden_spans --output_dir runs/demo-hidden

    python examples/hide_words.py --model_name_or_path openai/clip-vit-base-patch16 --dataset_name org/webperson \
        --steps 20000 --num_workers 8 --output_dir data/webperson-hidden

Patch evidence (`modeling_gadms/noise/patch_evidence.py`) learns which words go with which patches from the captions as
they are. Tokens that make their image much less likely are then listed in `caption1_hidden_spans`, ... The data set is
written to OUTPUT_DIR as parquet, its galleries unchanged; OUTPUT_DIR-report.json sums up what was hidden, and
OUTPUT_DIR-evidence.safetensors holds what was learnt. An interrupted run, started again, keeps finished files and, if
learning had finished, what was learnt.
"""

import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pretrain import PretrainArguments, load_pairs
from transformers import set_seed

from dataset_webperson import DataError
from dataset_webperson.command_line import command
from dataset_webperson.files import replacing, write_json, written_once
from dataset_webperson.release_shards import ROWS_PER_SHARD
from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.noise.hidden_words import kept_evidence, summarize, write_parquet, write_shards
from modeling_gadms.noise.patch_evidence import refuse_unfit
from modeling_gadms.training.command_line import parse_arguments
from modeling_gadms.training.starting_points import load_starting_point


@dataclass
class HideWordsArguments:
    _argument_group_name = "patch evidence"

    output_dir: str = field(metadata={"help": "Folder to write; must not exist."})
    steps: int = field(default=1200, metadata={"help": "Batches that patch evidence learns from."})
    batch_size: int = field(default=64, metadata={"help": "Images per batch, among which a word must find its own."})
    tower_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the image tower; 0 freezes it. The small CLIP wants 5e-4."}
    )
    threshold: float = field(
        default=0.5,
        metadata={
            "help": "In nats: a word is hidden if it makes its image exp(threshold) times less likely. With exact "
            "evidence and a share r of false words, it is more likely false than true at log(1 / (2 r)): 0.5 for 0.3."
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
        if self.tower_learning_rate < 0:
            raise ValueError(f"tower_learning_rate must not be negative; got {self.tower_learning_rate}")
        if self.threshold <= 0:
            raise ValueError(
                f"threshold must be above 0, or words that say nothing are hidden too; got {self.threshold}"
            )


def refuse_taken(output_dir: str) -> None:
    """Stop before writing over an earlier result; what an interrupted run left is its own."""
    names = [output_dir]
    if not os.path.exists(output_dir + ".partial"):
        names += [f"{output_dir}-evidence.safetensors", f"{output_dir}-report.json"]
    for path in names:
        if os.path.exists(path):
            raise FileExistsError(f"{path} already exists: delete it, or choose another --output_dir")


def begin(work: str, settings: dict[str, Any]) -> None:
    """Make the folder of the work, or continue in it if it was started alike."""
    if written_once(os.path.join(work, "settings.json"), settings) != settings:
        raise FileExistsError(f"{work} was started with other data or options: delete it to start over")


@command
def main(arguments: list[str] | None = None) -> None:
    kinds, renamed = (PretrainArguments, HideWordsArguments), {"--out": "--output_dir"}
    source, args = parse_arguments(kinds, arguments, description=__doc__, renamed=renamed)
    out = os.path.abspath(args.output_dir)
    work = out + ".partial"
    refuse_taken(out)
    if source.streaming:
        raise DataError("streaming: patch evidence reads rows in any order; load the data set without it")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("this runs as one process: start it with `python`, not with a launcher")

    train, validation, test = load_pairs(source, args.seed)
    assert not isinstance(train, ShuffledParquet)  # a stream was refused above
    refuse_unfit(train)
    set_seed(args.seed)
    model, processor = load_starting_point(source.model_name_or_path, tuple(source.image_size))
    gadms = model.gadms.to(args.device).eval()
    settings = {**asdict(source), **asdict(args), "rows": len(train), "data": train._fingerprint}
    free = ("output_dir", "device", "num_workers")  # they may differ between a run and its continuation
    begin(work, {name: value for name, value in settings.items() if name not in free})

    folder, kept = os.path.join(work, "main", "data"), os.path.join(work, "evidence.safetensors")
    for split, rows in (("validation", validation), ("test", test)):
        file = os.path.join(folder, f"{split}-00000-of-00001.parquet")
        if rows is not None and not os.path.exists(file):  # first, so that a missing image is reported now
            write_parquet(rows, file)
    evidence = kept_evidence(
        gadms,
        processor,
        train,
        kept,
        steps=args.steps,
        tower_learning_rate=args.tower_learning_rate,
        batch_size=args.batch_size,
        seed=args.seed,
        num_workers=args.num_workers,
    )
    options = {"rows_per_shard": args.rows_per_shard, "num_workers": args.num_workers}
    summary = summarize(write_shards(evidence, processor, train, folder, threshold=args.threshold, **options))
    write_json(f"{out}-report.json", settings | summary)
    with replacing(f"{out}-evidence.safetensors") as temporary:
        shutil.copyfile(kept, temporary)
    os.replace(os.path.join(work, "main"), out)  # last: the folder is there only when all else is
    shutil.rmtree(work)

    for name, value in summary.items():
        print(f"{name:12} {', '.join(value) if isinstance(value, dict) else f'{value:.1%} of characters'}")
    print(f"{len(train)} training rows and {len(test)} test rows in {out}; figures in {out}-report.json")


if __name__ == "__main__":
    sys.exit(main())
