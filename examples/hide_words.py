"""Find the words of captions that speak against their images, and write a data set that pre-training hides them from.

    python examples/hide_words.py --dataset_name synthetic --image_size 64 32 --tower_learning_rate 5e-4 \
        --out runs/hidden                                                              # offline, a few minutes
    accelerate launch examples/pretrain.py examples/pretrain_demo.yaml --dataset_name runs/hidden \
        --hidden_spans hidden_spans --output_dir runs/demo-hidden

    python examples/hide_words.py --model_name_or_path openai/clip-vit-base-patch16 --dataset_name org/webperson \
        --steps 20000 --num_workers 8 --out data/webperson-hidden

Patch evidence (`modeling_gadms/noise/patch_evidence.py`) learns from the captions as they are which words go with
which patches; then each caption's tokens that make their image much less likely are listed in
`caption1_hidden_spans`, ... The data set goes to OUT as parquet, its test split as it was; OUT-report.json sums up
what was hidden, and what was learnt is in OUT-evidence.safetensors. An interrupted run, started again, keeps what was
learnt to the end and files that are whole.
"""

import os
import shutil
import sys
from dataclasses import asdict, dataclass, field

import torch
from pretrain import PretrainArguments, load_pairs
from transformers import set_seed

from dataset_webperson.files import replacing, write_json, written_once
from dataset_webperson.release import ROWS_PER_SHARD
from modeling_gadms.noise.hidden_words import kept_evidence, summarize, write_parquet, write_shards
from modeling_gadms.noise.patch_evidence import refuse_unfit
from modeling_gadms.training.command_line import parse_arguments
from modeling_gadms.training.starting_points import load_starting_point


@dataclass
class HideWordsArguments:
    out: str = field(metadata={"help": "Folder to write; must not exist."})
    steps: int = field(default=1200, metadata={"help": "Batches that patch evidence learns from."})
    batch_size: int = field(default=64, metadata={"help": "Images a batch, which each word is told apart among."})
    tower_learning_rate: float = field(
        default=1e-5, metadata={"help": "Of its image tower; 0 leaves the model's as it is. The small CLIP: 5e-4."}
    )
    threshold: float = field(
        default=0.5,
        metadata={
            "help": "Nats; a word is hidden if it makes its image exp(threshold) times less likely. Exact evidence "
            "makes it more likely false than true at log(1 / (2 r)), where a share r is false: 0.5 for 0.3."
        },
    )
    rows_per_shard: int = field(default=ROWS_PER_SHARD, metadata={"help": "Rows a parquet file."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images ahead while it learns."})
    seed: int = field(default=42, metadata={"help": "Of everything random; as in pre-training, for the same split."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where to compute."})

    def __post_init__(self):
        for name in ("steps", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, or nothing is told apart; got {self.batch_size}")
        if self.tower_learning_rate < 0:
            raise ValueError(f"tower_learning_rate must not be negative; got {self.tower_learning_rate}")
        if self.threshold <= 0:
            raise ValueError(f"threshold must be above 0, or words that say nothing go too; got {self.threshold}")


def begin(work: str, settings: dict) -> None:
    """Make the folder of the work, or go on in it if it was begun alike."""
    if written_once(os.path.join(work, "settings.json"), settings) != settings:
        raise FileExistsError(f"{work} was begun with other data or options: delete it to begin anew")


def main(argv: list[str]) -> None:
    source, args = parse_arguments((PretrainArguments, HideWordsArguments), argv)
    out, work = os.path.abspath(args.out), os.path.abspath(args.out) + ".partial"
    learnt, report = f"{out}-evidence.safetensors", f"{out}-report.json"
    for path in (out,) if os.path.exists(work) else (out, learnt, report):
        if os.path.exists(path):
            raise FileExistsError(f"{path} is there already: delete it, or choose another --out")
    if source.streaming:
        raise ValueError("streaming: patch evidence reads rows in any order; load the data set without it")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this runs as one process: start it by `python`")
    train, test = load_pairs(source, args.seed)
    refuse_unfit(train)
    set_seed(args.seed)
    model, processor = load_starting_point(source.model_name_or_path, tuple(source.image_size))
    model = model.gadms.to(args.device).eval()
    settings = {**asdict(source), **asdict(args), "rows": len(train), "data": train._fingerprint}
    begin(work, {name: value for name, value in settings.items() if name not in ("out", "device", "num_workers")})
    folder = os.path.join(work, "main", "data")
    test_file = os.path.join(folder, "test-00000-of-00001.parquet")
    if not os.path.exists(test_file):  # first, so that a missing image is told before anything is learnt
        write_parquet(test, test_file)
    kept = os.path.join(work, "evidence.safetensors")
    evidence = kept_evidence(
        model,
        processor,
        train,
        kept,
        steps=args.steps,
        tower_learning_rate=args.tower_learning_rate,
        batch_size=args.batch_size,
        seed=args.seed,
        num_workers=args.num_workers,
    )
    sharding = {"rows_per_shard": args.rows_per_shard, "num_workers": args.num_workers}
    files = write_shards(evidence, processor, train, folder, threshold=args.threshold, **sharding)
    summary = summarize(files)
    write_json(report, settings | summary)
    with replacing(learnt) as temporary:
        shutil.copyfile(kept, temporary)
    os.replace(os.path.join(work, "main"), out)
    shutil.rmtree(work)
    for name, value in summary.items():
        print(f"{name:12} {', '.join(value) if isinstance(value, dict) else f'{value:.1%} of characters'}")
    print(f"{len(train)} training rows and {len(test)} test rows in {out}; figures in {report}")


if __name__ == "__main__":
    main(sys.argv[1:])
