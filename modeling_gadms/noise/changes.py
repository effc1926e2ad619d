"""What each mode of repairing captions does to rows."""

from collections.abc import Callable
from typing import Any

import datasets

from ..processing_gadms import GADMSProcessor
from .arguments import RepairArguments
from .patch_evidence import PatchEvidence, hide_words
from .repaired_captions import add_posteriors, calibrate_families, repair_captions
from .word_families import Family


def change_of(
    args: RepairArguments,
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    train: datasets.Dataset,
    families: dict[str, Family],
) -> tuple[Callable[[datasets.Dataset], datasets.Dataset], dict[str, Any]]:
    """What is done to each part of the rows, and what was estimated for it."""
    if args.mode == "hide":
        return lambda rows: hide_words(evidence, processor, rows, args.threshold, num_workers=args.num_workers), {}
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    calibrated = calibrate_families(evidence, processor, train, families, seed=args.seed, **options)

    def change(rows: datasets.Dataset) -> datasets.Dataset:
        rows = add_posteriors(evidence, processor, rows, calibrated, **options)
        return repair_captions(rows) if args.mode == "repair" else rows

    return change, {"share_false": calibrated.share_false}
