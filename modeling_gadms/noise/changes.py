"""What each mode of repairing captions learns from rows, and does to them."""

from collections.abc import Callable
from typing import Any

import datasets

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from .arguments import RepairArguments
from .kept_evidence import kept_evidence, kept_reader
from .patch_evidence import hide_words
from .repaired_captions import add_posteriors, count_words, repair_captions
from .word_families import Family


def change_of(
    args: RepairArguments,
    model: GADMSModel,
    processor: GADMSProcessor,
    train: datasets.Dataset,
    families: dict[str, Family],
    file: str,
) -> tuple[Callable[[datasets.Dataset], datasets.Dataset], dict[str, Any]]:
    """What is done to each part of the rows, and what was estimated for it; what is learnt is kept in `file`."""
    learning = {name: getattr(args, name) for name in ("steps", "tower_learning_rate", "batch_size", "seed")}
    if args.mode == "hide":
        evidence = kept_evidence(model, processor, train, file, **learning, num_workers=args.num_workers)
        return lambda rows: hide_words(evidence, processor, rows, args.threshold, num_workers=args.num_workers), {}
    reader = kept_reader(model, processor, train, families, file, **learning, num_workers=args.num_workers)
    vocabulary = count_words(train, families, args.seed)

    def change(rows: datasets.Dataset) -> datasets.Dataset:
        rows = add_posteriors(reader, processor, rows, vocabulary, args.batch_size, args.num_workers)
        return repair_captions(rows) if args.mode == "repair" else rows

    return change, {"share_false": reader.share_false.item()}
