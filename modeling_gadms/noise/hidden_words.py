"""A data set with the words that speak against their images, file by file: what is finished stays over a break."""

import math
import os
from collections import Counter

import pyarrow.parquet as pq
import torch
from datasets.table import embed_table_storage
from safetensors.torch import load_file, save_file

from dataset_webperson.files import replacing
from dataset_webperson.release import ROW_GROUP_ROWS

from ..rows import caption_columns
from ..tokenization_gadms import clean_caption
from .patch_evidence import HIDDEN, PatchEvidence, hide_words, train_patch_evidence


def kept_evidence(model, processor, rows, args, file: str) -> PatchEvidence:
    """Patch evidence, from `file` if an earlier run has left it there.

    Args:
        model ([`GADMSModel`]), processor ([`GADMSProcessor`]): where it starts from.
        rows (`datasets.Dataset`): captioned images.
        args: `steps`, `batch_size`, `tower_learning_rate`, `seed`, `num_workers` and `device`.
        file (`str`): safetensors.
    """
    if os.path.exists(file):
        evidence, found = PatchEvidence(model), load_file(file)
        evidence.reference_keys = torch.empty_like(found["reference_keys"])
        evidence.load_state_dict(found)
        return evidence.to(args.device).eval()
    options = {"batch_size": args.batch_size, "seed": args.seed, "num_workers": args.num_workers}
    evidence = train_patch_evidence(model, processor, rows, args.steps, args.tower_learning_rate, **options)
    with replacing(file) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in evidence.state_dict().items()}, temporary)
    return evidence


def write_parquet(rows, path: str) -> None:
    """One file, its images within."""
    rows = rows.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=ROW_GROUP_ROWS, keep_in_memory=True
    )
    with replacing(path) as temporary:
        rows.with_format(None).to_parquet(temporary, batch_size=ROW_GROUP_ROWS)


def write_shards(evidence, processor, rows, args, folder: str) -> list[str]:
    """The training rows with their hidden words; files that are there already stay."""
    count, files = math.ceil(len(rows) / args.rows_per_shard), []
    for number in range(count):
        files.append(os.path.join(folder, f"train-{number:05d}-of-{count:05d}.parquet"))
        if not os.path.exists(files[-1]):
            start = number * args.rows_per_shard
            shard = rows.select(range(start, min(start + args.rows_per_shard, len(rows))))
            shard = shard.flatten_indices(keep_in_memory=True)  # or each leaves a copy in the cache
            write_parquet(
                hide_words(evidence, processor, shard, args.threshold, num_workers=args.num_workers), files[-1]
            )
    return files


def summarize(files: list[str]) -> dict:
    """Which words were hidden how often, and in characters how many, and how rightly where the data know it."""
    hidden, characters = Counter(), Counter()
    for file in files:
        columns = [name for name in pq.read_schema(file).names if name.startswith("caption")]
        for row in pq.read_table(file, columns=columns).to_pylist():
            for name in caption_columns(row):
                caption, spans = clean_caption(row[name]), row[f"{name}_{HIDDEN}"]
                hidden.update(caption[start:end] for start, end in spans)
                doubted, known = (
                    {place for start, end in found for place in range(start, end)}
                    for found in (spans, row.get(f"{name}_false_spans") or [])
                )
                characters.update(all=len(caption), hidden=len(doubted), false=len(known), both=len(doubted & known))
    found = {"hidden": characters["hidden"] / characters["all"], "most_hidden": dict(hidden.most_common(20))}
    if characters["false"]:
        found["false"] = characters["false"] / characters["all"]
        found["precision"] = characters["both"] / max(characters["hidden"], 1)
        found["recall"] = characters["both"] / characters["false"]
    return found
