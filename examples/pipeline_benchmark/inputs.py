"""What the stages of the benchmark are given."""

import hashlib
import itertools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset_webperson.construction.shards import read_rows, shard_writer
from dataset_webperson.construction.stages.crop import SCHEMA
from dataset_webperson.files import write_json

EXAMPLES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARDS = 4


def write_lists(photos: str, folder: str, images: int) -> list[str]:
    """The photographs over and over, as files of their own, in lists of equal length."""
    names = sorted(os.listdir(photos))
    paths = []
    root = os.path.join(folder, "images")
    os.makedirs(root)
    for number, name in zip(range(images), itertools.cycle(names), strict=False):
        image = Image.open(os.path.join(photos, name)).convert("RGB")
        image.save(os.path.join(root, f"{number:05d}.jpg"), quality=90)  # as the web has it: JPEG
        paths.append(f"{number:05d}.jpg")
    lists = []
    for number in range(SHARDS):
        lists.append(os.path.join(folder, "lists", f"{number:05d}.json"))
        write_json(lists[-1], {"root": root, "images": paths[number::SHARDS]})
    return lists


def write_crops(crops: list[str], folder: str, rows_of_shard: int) -> list[str]:
    """Crops over and over, each with other bytes, in shards of equal length."""
    kept = [row for crop in crops for row in read_rows(crop)]
    paths = []
    for number in range(SHARDS):
        paths.append(os.path.join(folder, f"{number:05d}.parquet"))
        with shard_writer(paths[-1], SCHEMA) as shard:
            for place in range(rows_of_shard):
                row, name = dict(kept[(number * rows_of_shard + place) % len(kept)]), f"{number}-{place}.jpg"
                data = row["image"]["bytes"] + name.encode()
                digest = hashlib.sha256(data).hexdigest()
                row |= {"image": {"bytes": data, "path": name}, "image_path": name, "image_sha256": digest}
                row["phash"] = digest[:16]
                shard.write(row)
                shard.counts["rows_in"] += 1
    return paths


def write_metadata(folder: str, rows: int) -> list[str]:
    """Metadata with COYO's columns."""
    os.makedirs(folder)
    paths = []
    for number in range(SHARDS):
        random, numbers = np.random.default_rng(number), np.arange(rows) + number * rows
        columns = {
            "id": numbers,
            "url": [f"https://example.org/{value}.jpg" for value in numbers],
            "width": random.integers(150, 900, rows),
            "height": random.integers(150, 900, rows),
            "image_phash": [f"{value:016x}" for value in random.integers(0, 1 << 62, rows)],
            "num_faces": random.integers(0, 3, rows),
        }
        for name in ("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score"):
            columns[name] = random.random(rows) ** 2
        paths.append(os.path.join(folder, f"{number:05d}.parquet"))
        pq.write_table(pa.table(columns), paths[-1])
    return paths


def write_models(folder: str) -> dict[str, str]:
    """The shipped small CLIP as GA-DMS, and one of the paper's size."""
    from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSModel, GADMSProcessor

    clip = os.path.join(EXAMPLES, "small_clip")
    models = {"small": (64, 32), "paper's": (384, 128)}
    for name, size in models.items():
        path = os.path.join(folder, name)
        GADMSProcessor.from_clip_pretrained(clip, image_size=size).save_pretrained(path)
        small = name == "small"
        model = GADMSForPreTraining.from_clip_pretrained(clip, image_size=size).gadms if small else None
        (model or GADMSModel(GADMSConfig())).save_pretrained(path)
        models[name] = path
    return models
