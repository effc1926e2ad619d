"""Duplicates by image embeddings: pictures are grouped by the nearest of some centres, and compared in each group."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ...images import decode_rgb
from ..shards import read_rows, run_stage, shard_writer

_SCHEMA = pa.schema([("embedding", pa.list_(pa.float32()))])
_BATCH = 64
_BLOCK = 1_024
DUPLICATE_EMBEDDING = 3  # its number in `duplicates.REASONS`


@dataclass(frozen=True)
class EmbeddingOptions:
    """Which embeddings to compare, and how close makes a near-duplicate.

    Args:
        model: Hub id or folder of a model with `get_image_features`, such as CLIP or GA-DMS.
        revision: branch, tag or commit of the Hub repository.
        min_cosine: two pictures with at least this cosine are near-duplicates.
        clusters: number of pictures chosen as centres; each picture is compared with those that share its nearest
            centre. 1 compares all pairs; 5 million rows need thousands, and pairs across a border are missed.
    """

    model: str
    revision: str | None = None
    min_cosine: float = 0.97
    clusters: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.min_cosine <= 1 or self.clusters < 1:
            raise ValueError(
                f"min_cosine must be in 0..1 and clusters at least 1, not {self.min_cosine} and {self.clusters}"
            )


@lru_cache(maxsize=1)
def _open(model: str, revision: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = AutoModel.from_pretrained(model, revision=revision).eval().to(device)
    return AutoImageProcessor.from_pretrained(model, revision=revision), opened


def embed_shard(source: str, target: str, options: EmbeddingOptions) -> dict[str, int]:
    """A stage: unit embeddings of a shard's images, in the order of its rows."""
    import torch  # here, as in `_open`: the other stages start without it

    processor, model = _open(options.model, options.revision)
    with torch.inference_mode(), shard_writer(target, _SCHEMA) as shard:
        images: list[Image.Image] = []

        def embed() -> None:
            inputs = processor(images=images, return_tensors="pt").to(model.device)
            found = model.get_image_features(**inputs)
            vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
            for vector in torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy():
                shard.write({"embedding": vector})
            images.clear()

        for row in read_rows(source, ["image", "image_path"]):
            shard.counts["rows_in"] += 1
            images.append(decode_rgb(row["image"]["bytes"], row["image_path"]))
            if len(images) == _BATCH:
                embed()
        if images:
            embed()
    return dict(shard.counts)


def embedding_shards(shards: list[str], plan: str, options: EmbeddingOptions, num_workers: int) -> list[str]:
    """Embed the shards that have not been embedded yet, and return all shards of embeddings."""
    folder = os.path.join(plan, "embeddings")
    run_stage(embed_shard, shards, folder, options, num_workers)
    return [os.path.join(folder, os.path.basename(shard)) for shard in shards]


def flag_close_embeddings(
    shards: list[str], keys: np.ndarray, flags: np.ndarray, options: EmbeddingOptions, path: str
) -> None:
    """Set `DUPLICATE_EMBEDDING` for rows that lie close to an earlier one in the order of `keys`.

    Args:
        shards: shards of embeddings, whose rows are those of `keys`.
        path: temporary file for all vectors, float16.
    """
    vectors = _collect(shards, len(keys), path)
    if vectors is None:
        return

    stays = np.flatnonzero(flags == 0)
    # Ordered by a hash of the name, the first ones are a random choice that does not change.
    by_name = stays[np.argsort(keys["order"][stays, 1], kind="stable")]
    centres = vectors[by_name[: options.clusters]].astype(np.float32)
    nearest = np.empty(len(stays), np.int64)
    for place in range(0, len(stays), _BLOCK):
        block = vectors[stays[place : place + _BLOCK]].astype(np.float32)
        nearest[place : place + _BLOCK] = (block @ centres.T).argmax(1)

    # Flags are written last: a row that goes still counts as the earlier one of a pair.
    gone = []
    for cluster in range(len(centres)):
        rows = stays[nearest == cluster]
        part = keys[rows]
        rows = rows[np.lexsort((part["row"], part["order"][:, 1], part["order"][:, 0]))]
        gone += _close_to_earlier(vectors, rows, options.min_cosine)
    flags[np.concatenate(gone)] = DUPLICATE_EMBEDDING


def _collect(shards: list[str], count: int, path: str) -> np.memmap | None:
    """The embeddings of all shards in one file, `(count, D)` float16; `None` if there are no rows."""
    vectors: np.memmap | None = None
    start = 0
    for shard in shards:
        for row in read_rows(shard):
            if vectors is None:  # the first row tells the dimension
                vectors = np.memmap(path, np.float16, "w+", shape=(count, len(row["embedding"])))
            vectors[start] = row["embedding"]
            start += 1
    return vectors


def _close_to_earlier(vectors: np.ndarray, rows: np.ndarray, min_cosine: float) -> list[np.ndarray]:
    """The ordered `rows` that lie close to an earlier one, block by block."""
    found = []
    for place in range(0, len(rows), _BLOCK):
        later = rows[place : place + _BLOCK]
        later_vectors = vectors[later].astype(np.float32)
        close = np.zeros(len(later), bool)
        for other in range(0, place + 1, _BLOCK):
            earlier_vectors = vectors[rows[other : other + _BLOCK]].astype(np.float32)
            cosines = later_vectors @ earlier_vectors.T
            if other == place:
                cosines = np.tril(cosines, -1)  # within a block, only with the rows before each
            close |= (cosines >= min_cosine).any(1)
        found.append(later[close])
    return found
