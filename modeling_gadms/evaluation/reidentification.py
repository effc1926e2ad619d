"""Re-identification as a check of the image tower: a person found again by an image, without any training for it.

Images of the query's person by the query's own camera are left out of its ranking, as is usual; distractors stay.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState

from dataset_webperson.readers.reidentification import counts_of, reidentification_class

from ..person_retrieval.ranking import QueryRanks, rank_queries, same_camera
from .arguments import ReidentificationArguments
from .embedding_cache import cache_place, cached
from .encoding import encode_images
from .metrics import Evaluation, evaluate_ranks
from .models import load_retriever


@dataclass
class ImageEmbeds:
    """Embeddings `(N, D)` of images, float32, unit norm."""

    image_embeds: torch.Tensor


def copy_fault(name: str, parts: Mapping[str, datasets.Dataset]) -> str | None:
    """Why figures are not those of the data set: the counts of a part beside the official ones; else None."""
    kind = reidentification_class(name)
    for part, rows in parts.items():
        if (found := counts_of(kind, rows["person_id"][:])) != kind.official[part]:
            return f"{part} has {found}; official: {kind.official[part]}"
    return None


def measure_reidentification(
    name: str, parts: Mapping[str, datasets.Dataset], args: ReidentificationArguments
) -> tuple[dict, Evaluation]:
    """Encode and rank; each process encodes its share.

    Args:
        name (`str`): folder or Hub id of the model.
        parts: `query` and `gallery`, as `load_reidentification` gives them.

    Returns:
        What results.json says, and the evaluation with the direction `i2i`, of the queries that have a match by
        another camera; the others are counted as `skipped`.

    Raises:
        ValueError: no query has such a match.
    """
    state = PartialState()
    model, processor = load_retriever(name, bf16=args.bf16, device=state.device)
    options: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    options["progress"] = state.is_main_process
    start, embeds, notes = time.time(), {}, {}
    for part, rows in parts.items():
        place = cache_place(model, processor, rows, args.cache_dir, state.is_main_process)

        def encode(rows: datasets.Dataset = rows) -> ImageEmbeds:
            return ImageEmbeds(encode_images(model, processor, rows, **options))

        found, was_cached = cached(ImageEmbeds, place["file"], encode, args.cache_limit)
        embeds[part], notes[part] = found.image_embeds, {**place, "was_cached": was_cached}
    ids, shown = (np.array(parts[part]["person_id"][:]) for part in ("query", "gallery"))
    cameras = [np.array(parts[part]["camera"][:]) for part in ("query", "gallery")]
    exclude = same_camera(ids, shown, *cameras)
    ranks = rank_queries(embeds["query"], embeds["gallery"], ids, shown, exclude=exclude, on_missing="skip")
    kept = ranks.num_matches > 0
    evaluation = evaluate_ranks({"i2i": of_queries(ranks, kept)}, {"i2i": ids[kept]}, seed=args.seed)
    result = {
        "model": os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "queries": int(kept.sum()),
        "skipped": int((~kept).sum()),
        "images": len(embeds["gallery"]),
        "processes": state.num_processes,
        "encoding_seconds": round(time.time() - start, 2),
        "embeddings": notes,
        "scoring": "cosine",
        "metrics": evaluation.metrics,
    }
    return result, evaluation


def of_queries(ranks: QueryRanks, kept: np.ndarray) -> QueryRanks:
    """The ranks of the queries that a bool mask keeps, none of which is skipped."""
    return QueryRanks(
        ranks.first_match_rank[kept],
        ranks.average_precision[kept],
        ranks.inverse_negative_penalty[kept],
        ranks.num_matches[kept],
        skipped=np.empty(0, np.int64),
    )
