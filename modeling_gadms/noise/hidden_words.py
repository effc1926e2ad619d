"""Writes a data set with the words that speak against their images, file by file, so that a break loses little."""

import math
import os
from collections import Counter
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
from datasets.table import embed_table_storage
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dataset_webperson import DataError
from dataset_webperson.files import replacing
from dataset_webperson.release_shards import ROW_GROUP_ROWS

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns
from ..tokenization_gadms import clean_caption
from .patch_evidence import HIDDEN, PatchEvidence, hide_words, train_patch_evidence


def kept_evidence(
    model: GADMSModel,
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    file: str,
    *,
    steps: int,
    tower_learning_rate: float,
    batch_size: int,
    seed: int,
    num_workers: int,
) -> PatchEvidence:
    """Patch evidence on the model's device: from `file` if an earlier run has left it there, else learnt and kept.

    Args:
        model ([`GADMSModel`]): the image tower starts from its own.
        processor ([`GADMSProcessor`]): its processor.
        rows (`datasets.Dataset`): captioned images.
        file (`str`): safetensors.
        steps, tower_learning_rate, batch_size, seed, num_workers: as in
            [`~modeling_gadms.noise.patch_evidence.train_patch_evidence`].

    Raises:
        DataError: the file is broken, or of another model.
    """
    if os.path.exists(file):
        return load_evidence(model, file)
    evidence = train_patch_evidence(
        model,
        processor,
        rows,
        steps,
        tower_learning_rate,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
    )
    with replacing(file) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in evidence.state_dict().items()}, temporary)
    return evidence


def load_evidence(model: GADMSModel, file: str) -> PatchEvidence:
    """Patch evidence from its safetensors file, on the model's device.

    Raises:
        DataError: the file is broken, or of another model.
    """
    evidence = PatchEvidence(model)
    try:
        found = load_file(file)
        evidence.reference_keys = torch.empty_like(found["reference_keys"])
        evidence.load_state_dict(found)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{file}: broken, or not the patch evidence of this model; delete it to learn again"
        ) from error
    return evidence.to(next(model.parameters()).device).eval()


def write_parquet(rows: datasets.Dataset, path: str) -> None:
    """Write rows into one file, with their images inside."""
    rows = rows.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=ROW_GROUP_ROWS, keep_in_memory=True
    )
    with replacing(path) as temporary:
        rows.with_format(None).to_parquet(temporary, batch_size=ROW_GROUP_ROWS)


def write_shards(
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    folder: str,
    *,
    threshold: float,
    rows_per_shard: int,
    num_workers: int,
) -> list[str]:
    """Write the training rows with their hidden words, and return the files; files that exist already stay."""
    count = math.ceil(len(rows) / rows_per_shard)
    files = []
    for number in range(count):
        file = os.path.join(folder, f"train-{number:05d}-of-{count:05d}.parquet")
        files.append(file)
        if os.path.exists(file):
            continue
        start = number * rows_per_shard
        shard = rows.select(range(start, min(start + rows_per_shard, len(rows))))
        # in memory, or every shard leaves a copy in the cache
        shard = shard.flatten_indices(keep_in_memory=True)
        write_parquet(hide_words(evidence, processor, shard, threshold, num_workers=num_workers), file)
    return files


def summarize(files: list[str]) -> dict[str, Any]:
    """How often each word is hidden, and the share of characters hidden; where false words are known, how rightly."""
    hidden: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for file in files:
        columns = [name for name in pq.read_schema(file).names if name.startswith("caption")]
        for row in pq.read_table(file, columns=columns).to_pylist():
            for name in caption_columns(row):
                caption, spans = clean_caption(row[name]), row[f"{name}_{HIDDEN}"]
                hidden.update(caption[start:end] for start, end in spans)
                doubted = _characters_in(spans)
                known = _characters_in(row.get(f"{name}_false_spans") or [])
                characters.update(all=len(caption), hidden=len(doubted), false=len(known), both=len(doubted & known))

    found = {"hidden": characters["hidden"] / characters["all"], "most_hidden": dict(hidden.most_common(20))}
    if characters["false"]:
        found["false"] = characters["false"] / characters["all"]
        found["precision"] = characters["both"] / max(characters["hidden"], 1)
        found["recall"] = characters["both"] / characters["false"]
    return found


def _characters_in(spans: list[list[int]]) -> set[int]:
    return {place for start, end in spans for place in range(start, end)}
