"""Made-up rows that the growth of a construction is measured on: crops, their embeddings, their captions."""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_webperson.construction.captions.words import ATTRIBUTE_WORDS
from dataset_webperson.construction.shards import read_table, shard_writer
from dataset_webperson.construction.stages.captioning import NEW_COLUMNS
from dataset_webperson.construction.stages.crop import SCHEMA
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard

ROWS_OF_SHARD = 10_000
DIFFERENT_SHARDS = 10
DIMENSION = 64
CAPTION = (
    "A {0} man in a {1} jacket, {2} trousers and {3} shoes carries a {4} bag over his {5} shoulder and walks with the "
    "{6} phone in his hand past a {7} wall."
)


def write_rows(folder: str, rows: int) -> list[str]:
    """Crop shards whose pictures are 16 bytes long; a tenth are near-duplicates of the row before."""
    paths = []
    for start in range(0, rows, ROWS_OF_SHARD):
        random, count = np.random.default_rng(start), min(ROWS_OF_SHARD, rows - start)
        hashes = random.integers(1 << 63, size=count, dtype=np.uint64) * np.uint64(2)
        hashes[9::10] = hashes[8::10][: len(hashes[9::10])] ^ np.uint64(1 << 20)
        names = [f"{start + place:09d}.jpg" for place in range(count)]
        sizes = random.integers(90, 300, count)
        columns: dict[str, Any] = {name: [None] * count for name in SCHEMA.names}
        columns["image"] = [{"bytes": name.encode(), "path": name} for name in names]
        columns["image_path"] = columns["source_id"] = names
        columns["image_sha256"] = [random.bytes(32).hex() for _ in names]
        columns["phash"] = [f"{value:016x}" for value in hashes.tolist()]
        columns["box"] = [[0.0, 0.0, float(size), 2.0 * size] for size in sizes.tolist()]
        columns["box_score"] = random.random(count).tolist()
        paths.append(os.path.join(folder, f"{start // ROWS_OF_SHARD:05d}.parquet"))
        with shard_writer(paths[-1], SCHEMA) as shard:
            shard.write_batch(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA))
    return paths


def write_embeddings(shards: list[str], folder: str) -> None:
    """Embeddings of crop shards, with a falling spectrum and a cosine of 0.6 between any two; every tenth a twin."""
    scale = np.exp(-np.arange(DIMENSION) / 20)
    for number, path in enumerate(shards):
        random = np.random.default_rng(number)
        count = pq.read_metadata(path).num_rows
        vectors = random.standard_normal((count, DIMENSION)) * scale / np.linalg.norm(scale)
        vectors[:, 0] += 1.2
        vectors[9::10] = vectors[8::10][: len(vectors[9::10])] + 0.01 * random.standard_normal(DIMENSION)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        schema = pa.schema([("embedding", pa.list_(pa.float32()))])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), DIMENSION)
        with shard_writer(os.path.join(folder, os.path.basename(path)), schema) as shard:
            shard.write_batch(pa.table([column.cast(pa.list_(pa.float32()))], schema=schema))


def write_captions(crops: list[str], folder: str) -> list[str]:
    """The shards of the quality stage, unscored, with two captions of thirty words each; ten, over and over."""
    colors = sorted(ATTRIBUTE_WORDS["color"])
    paths: list[str] = []
    for number, path in enumerate(crops):
        if number >= DIFFERENT_SHARDS:
            paths.append(os.path.join(folder, "4_quality", os.path.basename(path)))
            os.link(paths[number % DIFFERENT_SHARDS], paths[-1])
            continue
        random, table = np.random.default_rng(number), read_table(path, ["image", "image_path"])
        for name, kind in NEW_COLUMNS.items():
            values: list[Any] = [None] * len(table)
            if name in ("caption1", "caption2"):
                values = [CAPTION.format(*random.choice(colors, 8)) for _ in values]
            elif name.startswith("captioner"):
                values = [name] * len(table)
            elif name.endswith("_problems"):
                values = [[]] * len(table)
            elif name == "template_id":
                values = [f"t{place % 65}" for place in range(len(table))]
            table = table.append_column(name, pa.array(values, kind))
        source = os.path.join(folder, "3_caption", os.path.basename(path))
        with shard_writer(source, table.schema) as shard:
            shard.write_batch(table)
        paths.append(source.replace("3_caption", "4_quality"))
        assess_shard(source, paths[-1], QualityOptions())
    return paths
