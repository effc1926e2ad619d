"""Drawn pedestrians as a shard of crops, whose captions have known false words, to measure the quality stage on."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..drawn.attributes import sample_person, sample_view
from ..drawn.captions import write_caption
from ..drawn.figures import draw_person
from ..near_duplicates import perceptual_hash
from .shards import read_rows, shard_writer
from .stages.crop import SCHEMA
from .stages.quality import auc

NOISE_RATES = {"truthful": 0.0, "careless": 0.3}
_SIZE = (128, 64)

Spans = dict[str, list[tuple[int, int]]]


def draw_crops(target: str, count: int) -> tuple[dict[str, dict[str, str]], Spans]:
    """Write `count` drawn pedestrians as the shard `target`, the same ones each time.

    Returns:
        Captions, `{captioner: {SHA-256 of the image: caption}}`, one captioner per entry of `NOISE_RATES`, which gives
        its share of false attribute words; and `{caption: [(start, end), ...]}`, the characters of its false words.
    """
    captions: dict[str, dict[str, str]] = {name: {} for name in NOISE_RATES}
    false_spans: Spans = {}
    with shard_writer(target, SCHEMA) as shard:
        for index in range(count):
            person, view = sample_person(0, "train", index), sample_view(0, "train", index, 0)
            image, buffer = draw_person(person, view, _SIZE), io.BytesIO()
            image.save(buffer, "JPEG", quality=95, subsampling=0)
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            for captioner, rate in NOISE_RATES.items():
                caption = write_caption(person, view, rate, 0, "train", index, 0, captioner)
                captions[captioner][digest] = caption.text
                false_spans[caption.text] = [(word.start, word.end) for word in caption.words if word.is_false]
            name = f"drawn{index:04d}"
            row: dict[str, Any] = {
                "image_path": f"{name}_0.jpg",
                "source_id": name,
                "source_sha256": digest,
                "image_sha256": digest,
            }
            row |= {"box": [0.0, 0.0, image.width, image.height], "box_score": 1.0, "keypoints": []}
            row |= {"image": {"bytes": buffer.getvalue(), "path": row["image_path"]}, "detector": "drawn"}
            shard.write(row | {"phash": f"{perceptual_hash(image):016x}"})
            shard.counts["rows_in"] += 1
    return captions, false_spans


CAPTION_KINDS = ("true", "with false words", "nonsense")


def scores_by_kind(shards: list[str], false_spans: Mapping[str, list[tuple[int, int]]]) -> dict[str, np.ndarray]:
    """The scores of assessed captions by `CAPTION_KINDS`; a caption that is not in `false_spans` is nonsense."""
    scores: dict[str, list[float]] = {kind: [] for kind in CAPTION_KINDS}
    for row in (row for shard in shards for row in read_rows(shard)):
        for number in (1, 2):
            spans = false_spans.get(row[f"caption{number}"])
            kind = CAPTION_KINDS[2] if spans is None else CAPTION_KINDS[bool(spans)]
            if row[f"caption{number}_score"] is not None:  # of a caption that is not empty
                scores[kind].append(row[f"caption{number}_score"])
    return {kind: np.array(found) for kind, found in scores.items()}


def measure_scores(shards: list[str], false_spans: Mapping[str, list[tuple[int, int]]]) -> tuple[float, float]:
    """How well the scores of assessed shards tell false from true: two values of `quality.auc`, where 0.5 is chance.

    Returns:
        One value for captions (those with false words against those without), one for attribute words (false
        against true). Captions that are not in `false_spans` are skipped; NaN where one side is empty.
    """
    captions: dict[bool, list[float]] = {True: [], False: []}
    words: dict[bool, list[float]] = {True: [], False: []}
    for row in (row for shard in shards for row in read_rows(shard)):
        for number in (1, 2):
            if (spans := false_spans.get(row[f"caption{number}"])) is None:
                continue
            captions[bool(spans)].append(row[f"caption{number}_score"])
            for word in row[f"caption{number}_words"]:
                is_false = any(start < word["end"] and word["start"] < end for start, end in spans)
                words[is_false].append(word["score"])
    of_captions, of_words = (
        auc(*(np.array(found[is_false], dtype=float) for is_false in (True, False))) for found in (captions, words)
    )
    return of_captions, of_words
