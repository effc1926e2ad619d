"""Stage `crop`: images -> crops of persons that pass the rule, one row per person; rejected boxes are counted."""

import bisect
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ...images import ImageError, decode_within
from ...near_duplicates import perceptual_hash
from ...rows.images import JPEG_QUALITY
from ..hosts import HostCounts
from ..opt_out import OptOut
from ..persons.detectors import DetectorOptions, PersonDetector, PoseModel, PoseOptions, open_models
from ..persons.heads import Ellipse, blur_head, head_ellipse
from ..persons.nsfw import NsfwClassifier, NsfwOptions, open_classifier
from ..persons.rule import HEAD, TWO_PERSONS, RuleOptions, box_problem, covered_by_another, crop_area, pose_problem
from ..persons.views import count_traits, traits
from ..public_names import public_name, public_url
from ..reservations import RobotsOptions
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
        ("source_phash", pa.string()),
        ("phash", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("box_score", pa.float32()),
        ("keypoints", pa.list_(pa.list_(pa.float32()))),
        ("detector", pa.string()),
    ]
)
REJECTED_BOXES = pa.schema(
    [
        ("image", pa.string()),
        ("url", pa.string()),
        ("source_sha256", pa.string()),
        ("source_phash", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("box_score", pa.float32()),
        ("reason", pa.string()),
        ("picture", pa.binary()),
    ]
)
# A larger JPEG is decoded at a half, a quarter or an eighth. Two batches of decoded images are held at a time, each
# ended by the image that reaches its limit: at most 2 * (48 + 24) million pixels of 3 bytes, 430 MB in each worker.
PIXELS_OF_IMAGE = 24_000_000
PIXELS_OF_BATCH = 48_000_000
PICTURED, PICTURED_MARGIN, PICTURED_SIZE = 2, 0.25, (120, 240)  # boxes of each reason that are shown, and how


@dataclass(frozen=True)
class CropOptions:
    """Which persons are cropped. A value that makes no sense raises `ValueError`.

    Args:
        detector: the person detector and its threshold.
        pose: the pose model and its threshold.
        rule: thresholds for sizes and counts.
        margin: extends a box on each side, as a share of its width or height.
        nsfw: a classifier whose verdict keeps pictures from being looked at; without it none is asked.
        robots: files robots.txt that were fetched too; see `reservations`, which headers follow without being asked.
        blur_faces: make heads unrecognisable in the crops, before anything else sees them (`persons.heads`).
        batch_size: number of images, or of crops, per call of a model.
        opt_out: file with an opt-out list (`opt_out.OptOut`); its images are not looked at.
    """

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    pose: PoseOptions = field(default_factory=PoseOptions)
    rule: RuleOptions = field(default_factory=RuleOptions)
    margin: float = 0.05
    nsfw: NsfwOptions | None = None
    robots: RobotsOptions | None = None
    blur_faces: bool = True
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
    scale: int  # of the file's own pixels to those of `image`
    sha256: str
    phash: str


Area = tuple[int, int, int, int]  # left, top, right, bottom
# An image, the number of a box in it, the box, what is cut out, and that.
_Candidate = tuple[_Decoded, int, np.ndarray, Area, Image.Image]


def crop_shard(source: str, target: str, options: CropOptions) -> dict[str, int]:
    """Detect persons in the images of a source shard (`sources.read_images`), find poses, filter and crop.

    Counts: `rows_in` images; of these `not_downloaded`, `image_missing`, `image_unreadable`, `image_too_large`, the
    further reasons of `source_scan`, `image_nsfw`, `opted_out_<reason>` and `images_without_person`; `boxes`, each of
    which counts under one of the reasons of `persons.rule` or in `rows_out`; `heads_blurred` of the crops.

    Beside the shard, `rejected_boxes/` holds the boxes that were left out, pictures of a few, and in its counts how
    the persons with a pose are seen (`persons.views`).
    """
    detector, pose = open_models(options.detector, options.pose)
    classifier = open_classifier(options.nsfw) if options.nsfw else None
    opt_out = OptOut.from_file(options.opt_out) if options.opt_out else OptOut()
    rejected: list[tuple[str, str]] = []
    left_out, hosts = _LeftOut(), HostCounts()
    with shard_writer(target, SCHEMA) as shard, ThreadPoolExecutor(1) as thread:
        images = _named(source)
        batch = thread.submit(_decode_batch, images, options, opt_out, hosts)
        while (result := batch.result()) is not None:
            # The next images are read and decoded while the models work on these.
            batch = thread.submit(_decode_batch, images, options, opt_out, hosts)
            decoded, counts, refused = result
            if classifier and decoded:
                decoded, unsafe = _without_unsafe(decoded, classifier)
                counts["image_nsfw"] = len(unsafe)
                refused += unsafe
            shard.counts.update(counts)
            rejected += refused
            _crop_batch(decoded, detector, pose, options, opt_out, shard, left_out)
        write_rejected_images(target, source, rejected)
        hosts.write(os.path.join(os.path.dirname(target), "hosts", os.path.basename(target)))
        beside = os.path.join(os.path.dirname(target), "rejected_boxes", os.path.basename(target))
        with shard_writer(beside, REJECTED_BOXES) as rejects:
            rejects.counts.update(left_out.seen)
            rejects.write_batch(pa.Table.from_pylist(left_out.rows, schema=REJECTED_BOXES))
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
    images: Iterator[tuple[str, SourceImage]], options: CropOptions, opt_out: OptOut, hosts: HostCounts
) -> tuple[list[_Decoded], dict[str, int], list[tuple[str, str]]] | None:
    """Up to `batch_size` images, decoded, their counts, and those rejected with their reasons; `None` at the end."""
    decoded: list[_Decoded] = []
    counts = {"rows_in": 0}
    rejected: list[tuple[str, str]] = []

    def count(image: SourceImage, reason: str, result: str = "") -> None:
        counts[reason] = counts.get(reason, 0) + 1
        hosts.add(image.url, result or reason)

    def reject(image: SourceImage, reason: str) -> None:
        count(image, reason)
        rejected.append((image.name or image.source_id, reason))

    def is_full() -> bool:
        pixels = sum(item.image.width * item.image.height for item in decoded)
        return counts["rows_in"] >= options.batch_size or pixels >= PIXELS_OF_BATCH

    while not is_full():
        name, source = next(images, ("", None))
        if source is None:
            break
        counts["rows_in"] += 1
        if source.problem == "not_downloaded":  # there is no file to name
            count(source, source.problem, source.note)
            continue
        if source.problem or source.data is None:
            reject(source, source.problem or "image_missing")
            continue
        if options.robots and options.robots.forbids(source.url):
            reject(source, "reserved_robots_txt")
            continue
        sha256 = hashlib.sha256(source.data).hexdigest()
        if reason := opt_out.excludes(source.url, [sha256]):
            count(source, f"opted_out_{reason}")
            continue
        try:
            image, scale = decode_within(source.data, source.source_id, PIXELS_OF_IMAGE)
        except ImageError as error:
            reject(source, "image_too_large" if error.code == "image-bomb" else "image_unreadable")
            continue
        phash = f"{perceptual_hash(image):016x}"
        if reason := opt_out.excludes(None, (), [phash]):
            count(source, f"opted_out_{reason}")
            continue
        hosts.add(source.url, "downloaded")
        source.data = None  # the bytes are not needed any more
        decoded.append(_Decoded(source, name, image, scale, sha256, phash))
    return (decoded, counts, rejected) if counts["rows_in"] else None


def _without_unsafe(
    decoded: list[_Decoded], classifier: NsfwClassifier
) -> tuple[list[_Decoded], list[tuple[str, str]]]:
    """The images that a classifier lets pass, and those that it does not, with their reason."""
    scores = classifier.scores([item.image for item in decoded])
    passed = [item for item, score in zip(decoded, scores, strict=True) if score <= classifier.options.max_score]
    kept = {item.name for item in passed}
    return passed, [
        (item.source.name or item.source.source_id, "image_nsfw") for item in decoded if item.name not in kept
    ]


class _LeftOut:
    """The boxes that are left out of a shard, `rows` of `REJECTED_BOXES`, and how persons are seen, `seen`.

    Of each reason, the few boxes whose names come first in a random order get a picture.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self._pictured: dict[str, list[tuple[bytes, int, dict[str, Any]]]] = {}

    def add(self, item: _Decoded, box: np.ndarray, reason: str) -> None:
        row = {
            "image": item.name,
            "url": public_url(item.source.url),
            "source_sha256": item.sha256,
            "source_phash": item.phash,
            "box": (box[:4] * item.scale).tolist(),
            "box_score": float(box[4]),
            "reason": reason,
        }
        self.rows.append(row)
        mark = hashlib.blake2b(f"{item.name} {box.tolist()}".encode(), digest_size=8).digest()
        pictured = self._pictured.setdefault(reason, [])
        if len(pictured) == PICTURED and mark >= pictured[-1][0]:
            return
        row["picture"] = _small_picture(item.image.crop(crop_area(box, PICTURED_MARGIN, *item.image.size)))
        bisect.insort(pictured, (mark, len(self.rows), row))
        for _, _, other in pictured[PICTURED:]:
            del other["picture"]
        del pictured[PICTURED:]


def _small_picture(image: Image.Image) -> bytes | None:
    if not image.width or not image.height:
        return None
    image.thumbnail(PICTURED_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def _crop_batch(
    decoded: list[_Decoded],
    detector: PersonDetector,
    pose: PoseModel,
    options: CropOptions,
    opt_out: OptOut,
    shard: ShardWriter,
    left_out: _LeftOut,
) -> None:
    """Write the crops of a batch."""
    if not decoded:
        return
    candidates: list[_Candidate] = []
    others: list[tuple[_Decoded, Area]] = []
    shared: set[tuple[str, int]] = set()

    def reject(item: _Decoded, box: np.ndarray, reason: str) -> None:
        shard.counts[reason] += 1
        left_out.add(item, box, reason)

    name = public_name(options.detector.model)
    found = detector.persons([item.image for item in decoded])
    for item, boxes in zip(decoded, found, strict=True):
        limits = [item.image.width, item.image.height] * 2
        shard.counts["images_without_person"] += not len(boxes)
        shard.counts["boxes"] += len(boxes)
        for number, box in enumerate(boxes):
            box = np.concatenate([np.clip(box[:4], 0, limits), box[4:]])
            covered = covered_by_another(box, np.delete(boxes, number, axis=0), options.detector.min_score)
            problem = box_problem(box, options.detector.min_score, options.rule)
            area = crop_area(box, options.margin, *item.image.size)
            if not problem and covered > options.rule.max_overlap:
                problem = "second_person"
            if problem:
                reject(item, box, problem)
                if box[4] > options.detector.min_score / 2:
                    others.append((item, area))
                continue
            if covered >= TWO_PERSONS:
                shared.add((item.name, number))
            candidates.append((item, number, box, area, item.image.crop(area)))
    poses = _poses([crop for *_, crop in candidates], pose, options.batch_size)
    heads = _heads(candidates, poses, others, pose, options) if options.blur_faces else {}
    for (item, number, box, area, crop), keypoints in zip(candidates, poses, strict=True):
        problem = pose_problem(keypoints, options.pose.min_score, options.rule)
        count_traits(left_out.seen, problem or "kept", traits(keypoints, options.pose.min_score))
        if problem:
            reject(item, box, problem)
            continue
        for head in heads.get(item.name, []):
            crop = blur_head(crop, head.moved(-area[0], -area[1]))
        row = _row(item, number, box, crop, keypoints + np.array([area[0], area[1], 0]), name)
        if reason := opt_out.excludes(None, [row["image_sha256"]], [row["phash"]]):
            shard.counts[f"opted_out_{reason}"] += 1
            continue
        if (item.name, number) in shared:
            shard.counts["crops_with_two_persons"] += 1
        if options.blur_faces and (keypoints[HEAD, 2] >= options.pose.min_score).any():
            shard.counts["heads_blurred"] += 1
        shard.write(row)


def _poses(crops: list[Image.Image], pose: PoseModel, batch_size: int) -> list[np.ndarray]:
    parts = [pose.keypoints(crops[start : start + batch_size]) for start in range(0, len(crops), batch_size)]
    return [keypoints for part in parts for keypoints in part]


def _heads(
    candidates: list[_Candidate],
    poses: list[np.ndarray],
    others: list[tuple[_Decoded, Area]],
    pose: PoseModel,
    options: CropOptions,
) -> dict[str, list[Ellipse]]:
    """The heads in each image, in its pixels: of all candidates, and of others who stand in a crop of one."""
    crops: dict[str, list[Area]] = {}
    for item, _, _, area, _ in candidates:
        crops.setdefault(item.name, []).append(area)
    near = [(item, area) for item, area in others if any(_meet(area, crop) for crop in crops.get(item.name, []))]
    poses = poses + _poses([item.image.crop(area) for item, area in near], pose, options.batch_size)
    places = [(item, area) for item, _, _, area, _ in candidates] + near
    heads: dict[str, list[Ellipse]] = {}
    for (item, area), keypoints in zip(places, poses, strict=True):
        if head := head_ellipse(keypoints, options.pose.min_score, area[3] - area[1]):
            heads.setdefault(item.name, []).append(head.moved(area[0], area[1]))
    return heads


def _meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


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
        "source_phash": item.phash,
        "phash": f"{perceptual_hash(crop):016x}",
        "box": (box[:4] * item.scale).tolist(),
        "box_score": float(box[4]),
        "keypoints": (keypoints * [item.scale, item.scale, 1]).tolist(),
        "detector": detector,
    }
