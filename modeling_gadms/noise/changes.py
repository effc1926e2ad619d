"""What each mode of repairing captions learns from rows, and does to them."""

import functools
from collections.abc import Callable
from typing import Any

import datasets

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from .arguments import RepairArguments
from .kept_evidence import kept
from .patch_evidence import PatchEvidence, hide_words, train_patch_evidence
from .repaired_captions import add_posteriors, count_words, repair_captions
from .value_reader import ValueReader, train_value_reader
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
    names = ("steps", "tower_learning_rate", "batch_size", "seed", "num_workers")
    learning = {name: getattr(args, name) for name in names}
    if args.mode == "hide":
        learn = functools.partial(train_patch_evidence, model, processor, train, **learning)
        evidence = kept(file, model, functools.partial(PatchEvidence, model), learn)
        return lambda rows: hide_words(evidence, processor, rows, args.threshold, num_workers=args.num_workers), {}
    read = functools.partial(train_value_reader, model, processor, train, families, **learning)
    reader = kept(file, model, functools.partial(ValueReader, model, families), read)
    vocabulary = count_words(train, families, args.seed)

    def change(rows: datasets.Dataset) -> datasets.Dataset:
        rows = add_posteriors(reader, processor, rows, vocabulary, args.batch_size, args.num_workers)
        return repair_captions(rows) if args.mode == "repair" else rows

    shown = reader.shown(families)
    estimated = {"share_false": reader.share_false.item()} if shown else {}
    return change, estimated | {"families_shown": shown}
