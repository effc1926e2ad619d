"""Pictures of coloured boxes that stand for persons, and stand-ins for the models, which read the colours.

A box is `(x0, y0, x1, y1, score, pose)`: `pose` is "seen", or which of the rule's parts it fails.
"""

import io
import json
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_up_webperson import add_member
from PIL import Image

from dataset_webperson.construction.shards import shard_writer
from dataset_webperson.construction.stages import crop

POSES = ("seen", "keypoints_few", "hips_hidden", "head_hidden")
STUB_CROP = crop.CropOptions(crop.DetectorOptions("onnx", "stub"), crop.PoseOptions("onnx", "stub"), batch_size=3)
GOOD = (40, 20, 140, 270, 0.99, "seen")


def picture(*boxes, size=(420, 300), seed=0) -> bytes:
    """A PNG with grey noise behind the boxes. Green tells the box's number, red its pose, blue its score."""
    noise = np.random.default_rng(seed).integers(0, 100, (size[1] // 20, size[0] // 20, 1), dtype=np.uint8)
    pixels = np.repeat(noise.repeat(20, 0).repeat(20, 1), 3, axis=2)
    for number, (x0, y0, x1, y1, score, pose) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = (200 + POSES.index(pose), 250 - number, round(score * 100))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class StubDetector:
    def persons(self, images):
        return [self._boxes(np.asarray(image)) for image in images]

    @staticmethod
    def _boxes(pixels):
        boxes = []
        for number in range(8):
            rows, columns = np.nonzero(pixels[:, :, 1] == 250 - number)
            if len(rows):
                score = pixels[rows[0], columns[0], 2] / 100
                boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, score))
        return np.array(boxes, np.float32).reshape(-1, 5)


class StubPose:
    def keypoints(self, crops):
        return [self._pose(np.asarray(picture)) for picture in crops]

    @staticmethod
    def _pose(pixels):
        pose = np.column_stack([np.linspace(1, pixels.shape[1] - 1, 17), np.linspace(2, pixels.shape[0] - 1, 17)])
        scores = np.full(17, 0.9)
        middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
        hidden = {1: slice(0, 12), 2: slice(11, 13), 3: slice(0, 4), 0: slice(0, 0)}[int(middle[0]) - 200]
        scores[hidden] = 0.1
        return np.column_stack([pose, scores]).astype(np.float32)


def stub_crop_shard(source, target, options):
    """`crop_shard` with the stand-ins, in whichever process it runs."""
    with mock.patch.object(crop, "open_models", lambda detector, pose: (StubDetector(), StubPose())):
        return crop.crop_shard(source, target, options)


def write_source(root: Path, shards: int = 3, images: int = 5, copies: int = 1) -> list[str]:
    """Tars as img2dataset writes them, with two persons an image; the last `copies` images repeat the first ones."""
    root.mkdir(parents=True, exist_ok=True)
    number, paths = 0, []
    for shard in range(shards):
        paths.append(str(root / f"{shard:05d}.tar"))
        with_failures = []
        with tarfile.open(paths[-1], "w") as tar:
            for place in range(images):
                key, seed = f"{shard:05d}{place:04d}", number if number < shards * images - copies else 0
                second = (200 + seed, 30, 310 + seed, 30 + 240, 0.97, "seen")
                meta = {"key": key, "url": f"https://site{number % 4}.org/{number}.jpg", "status": "success"}
                add_member(tar, f"{key}.png", picture(GOOD, second, seed=seed))
                add_member(tar, f"{key}.json", json.dumps(meta).encode())
                with_failures.append(meta)
                number += 1
        with_failures.append({"key": f"{shard:05d}9999", "url": "https://gone.org/", "status": "failed_to_download"})
        pq.write_table(pa.Table.from_pylist(with_failures), root / f"{shard:05d}.parquet")
        (root / f"{shard:05d}_stats.json").write_text("{}")
    return paths


def person_rows(count: int, seed: int, twins: float = 0.4) -> list[dict]:
    """Rows as after `crop`, of which a share repeats an earlier one's bytes or nearly its hash."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        phash, digest = int(random.integers(1 << 63)) * 2 + int(random.integers(2)), random.bytes(32).hex()
        if rows and random.random() < twins:
            other = rows[random.integers(len(rows))]
            phash = int(other["phash"], 16)
            if random.random() < 0.3:
                digest = other["image_sha256"]
            else:
                for bit in random.integers(0, 64, random.integers(0, 7)):
                    phash ^= 1 << int(bit)
        size = float(random.integers(90, 95))
        rows.append(
            {
                "image": {"bytes": b"jpeg", "path": f"{number}.jpg"},
                "image_path": f"{number}.jpg",
                "url": f"https://site{number % 5}.org/{number}",
                "source_id": str(number),
                "source_sha256": f"{number:064x}",
                "image_sha256": digest,
                "phash": f"{phash:016x}",
                "box": [0.0, 0.0, size, 2 * size],
                "box_score": float(np.float32(random.integers(90, 93) / 100)),
                "keypoints": [[1.0, 2.0, 0.5]] * 17,
                "detector": "stub",
            }
        )
    return rows


def write_crops(folder: Path, rows: list[dict], shards: int) -> list[str]:
    """Rows dealt out to crop shards."""
    paths = []
    for number in range(shards):
        paths.append(str(folder / f"{number:05d}.parquet"))
        with shard_writer(paths[-1], crop.SCHEMA) as shard:
            for row in rows[number::shards]:
                shard.counts["rows_in"] += 1
                shard.write(row)
    return paths
