"""Stage `crop`: images -> crops of persons that pass the rule, one row per person; rejected boxes are counted."""

import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ...images import ImageError, decode_rgb
from ...near_duplicates import perceptual_hash
from ...rows.images import JPEG_QUALITY
from ..opt_out import OptOut
from ..persons.detectors import DetectorOptions, PersonDetector, PoseModel, PoseOptions, open_models
from ..persons.rule import RuleOptions, box_problem, crop_area, pose_problem
from ..public_names import public_name, public_url
from ..shards import CHANGEABLE, ShardWriter, shard_writer
from ..source_scan import write_rejected_images
from ..sources import read_images
from ..tar_images import SourceImage

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_path", pa.string()),
        ("url", pa.string()),
        ("source_id", pa.string()),
        ("source_sha256", pa.string()),
        ("image_sha256", pa.string()),
        ("phash", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("box_score", pa.float32()),
        ("keypoints", pa.list_(pa.list_(pa.float32()))),
        ("detector", pa.string()),
    ]
)


@dataclass(frozen=True)
class CropOptions:
    """Which persons are cropped. A value that makes no sense raises `ValueError`.

    Args:
        detector: the person detector and its threshold.
        pose: the pose model and its threshold.
        rule: thresholds for sizes and counts.
        margin: extends a box on each side, as a share of its width or height.
        batch_size: number of images, or of crops, per call of a model.
        opt_out: file with an opt-out list (`opt_out.OptOut`); its images are not looked at.
    """

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    pose: PoseOptions = field(default_factory=PoseOptions)
    rule: RuleOptions = field(default_factory=RuleOptions)
    margin: float = 0.05
    batch_size: int = 16
    opt_out: str | None = field(default=None, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if self.margin < 0 or self.batch_size < 1:
            raise ValueError(
                f"margin must be at least 0 and batch_size at least 1, not {self.margin} and {self.batch_size}"
            )


@dataclass(slots=True)
class _Decoded:
    source: SourceImage
    name: str
    image: Image.Image
    sha256: str


def crop_shard(source: str, target: str, options: CropOptions) -> dict[str, int]:
    """Detect persons in the images of a source shard (`sources.read_images`), find poses, filter and crop.

    Counts: `rows_in` images; of these `not_downloaded`, `image_missing`, `image_unreadable`, `image_too_large`, the
    further reasons of `source_scan`, `opted_out_<reason>` and `images_without_person`; `boxes`, each of which counts
    under one of the reasons of `persons.rule` or in `rows_out`.
    """
    detector, pose = open_models(options.detector, options.pose)
    opt_out = OptOut.from_file(options.opt_out) if options.opt_out else OptOut()
    rejected: list[tuple[str, str]] = []
    with shard_writer(target, SCHEMA) as shard, ThreadPoolExecutor(1) as thread:
        images = _named(source)
        batch = thread.submit(_decode_batch, images, options.batch_size, opt_out)
        while (result := batch.result()) is not None:
            # The next images are read and decoded while the models work on these.
            batch = thread.submit(_decode_batch, images, options.batch_size, opt_out)
            decoded, counts, refused = result
            shard.counts.update(counts)
            rejected += refused
            _crop_batch(decoded, detector, pose, options, opt_out, shard)
        write_rejected_images(target, source, rejected)
    return dict(shard.counts)


def _named(shard: str) -> Iterator[tuple[str, SourceImage]]:
    """The images of a shard, each with a name that no other image of the construction has.

    Files may share one (`b.jpg` and `b.png`, `x/y.jpg` and `x_y.jpg`, one name in two tars), so it is made from the
    shard and the image's place in it, and stays the same when a run goes on and when rows are opted out.
    """
    stem = os.path.splitext(os.path.basename(shard))[0]
    for place, image in enumerate(read_images(shard)):
        yield f"{stem}_{place:06d}", image


def _decode_batch(
    images: Iterator[tuple[str, SourceImage]], size: int, opt_out: OptOut
) -> tuple[list[_Decoded], dict[str, int], list[tuple[str, str]]] | None:
    """Up to `size` images, decoded, their counts, and those rejected with their reasons; `None` at the end."""
    chunk = list(itertools.islice(images, size))
    if not chunk:
        return None
    decoded, counts = [], {"rows_in": len(chunk)}
    rejected: list[tuple[str, str]] = []

    def count(reason: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1

    def reject(image: SourceImage, reason: str) -> None:
        count(reason)
        rejected.append((image.name or image.source_id, reason))

    for name, source in chunk:
        if source.problem == "not_downloaded":  # there is no file to name
            count(source.problem)
            continue
        if source.problem or source.data is None:
            reject(source, source.problem or "image_missing")
            continue
        sha256 = hashlib.sha256(source.data).hexdigest()
        if reason := opt_out.excludes(source.url, sha256):
            count(f"opted_out_{reason}")
            continue
        try:
            image = decode_rgb(source.data, source.source_id)
        except ImageError as error:
            reject(source, "image_too_large" if error.code == "image-bomb" else "image_unreadable")
            continue
        decoded.append(_Decoded(source, name, image, sha256))
    return decoded, counts, rejected


def _crop_batch(
    decoded: list[_Decoded],
    detector: PersonDetector,
    pose: PoseModel,
    options: CropOptions,
    opt_out: OptOut,
    shard: ShardWriter,
) -> None:
    if not decoded:
        return
    candidates = []
    name = public_name(options.detector.model)
    found = detector.persons([item.image for item in decoded])
    for item, boxes in zip(decoded, found, strict=True):
        limits = [item.image.width, item.image.height] * 2
        shard.counts["images_without_person"] += not len(boxes)
        shard.counts["boxes"] += len(boxes)
        for number, box in enumerate(boxes):
            box = np.concatenate([np.clip(box[:4], 0, limits), box[4:]])
            if problem := box_problem(box, options.detector.min_score, options.rule):
                shard.counts[problem] += 1
                continue
            area = crop_area(box, options.margin, *item.image.size)
            candidates.append((item, number, box, area, item.image.crop(area)))
    for start in range(0, len(candidates), options.batch_size):
        part = candidates[start : start + options.batch_size]
        poses = pose.keypoints([crop for *_, crop in part])
        for (item, number, box, area, crop), keypoints in zip(part, poses, strict=True):
            if problem := pose_problem(keypoints, options.pose.min_score, options.rule):
                shard.counts[problem] += 1
                continue
            row = _row(item, number, box, crop, keypoints + np.array([area[0], area[1], 0]), name)
            if reason := opt_out.excludes(None, row["image_sha256"]):
                shard.counts[f"opted_out_{reason}"] += 1
                continue
            shard.write(row)


def _row(
    item: _Decoded, number: int, box: np.ndarray, crop: Image.Image, keypoints: np.ndarray, detector: str
) -> dict[str, Any]:
    buffer = io.BytesIO()
    crop.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    data = buffer.getvalue()
    path = f"{item.name}_{number}.jpg"
    return {
        "image": {"bytes": data, "path": path},
        "image_path": path,
        "url": public_url(item.source.url),
        "source_id": item.source.source_id,
        "source_sha256": item.sha256,
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "phash": f"{perceptual_hash(crop):016x}",
        "box": box[:4].tolist(),
        "box_score": float(box[4]),
        "keypoints": keypoints.tolist(),
        "detector": detector,
    }
