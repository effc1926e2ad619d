"""Captioned rows: their images, captions and persons, and a hash that gives each row its randomness."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import torch

from dataset_webperson import DataError
from dataset_webperson.rows.image_column import refuse_missing


def stable_hash(*parts: object) -> int:
    """A number in [0, 2**63) that depends only on the printed parts: the same in every process, run and machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def some_places(total: int, count: int, seed: int) -> list[int]:
    """At most `count` of the numbers below `total`, drawn by the seed, in order."""
    return sorted(random.Random(seed).sample(range(total), min(count, total)))


def read_row(dataset: datasets.Dataset, index: int) -> dict[str, Any]:
    """One row with its image decoded.

    Raises:
        DataError: the image is missing or broken; names the row, the image and the cure.
    """
    try:
        row = dataset[index]
        if row["image"] is None:
            raise ValueError("there is none")
        return row
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises these on missing and broken files
        path = dataset.select_columns("image_path")[index]["image_path"]
        raise DataError(
            f"row {index}, image {path}: cannot be read ({error}). Replace the file, or leave the row out with "
            "`dataset.select`; training can be resumed from its last checkpoint"
        ) from error


def is_caption_column(name: str) -> bool:
    """Whether a column is `caption1`, `caption2`, ..."""
    return name[:7] == "caption" and name[7:].isdigit()


def caption_columns(row: Iterable[str]) -> list[str]:
    """Names of the caption columns, `caption1`, `caption2`, ..., in order.

    Args:
        row: a row, or the names of its columns.

    Raises:
        DataError: there is none.
    """
    columns = sorted(filter(is_caption_column, row), key=lambda n: int(n[7:]))
    if not columns:
        raise DataError(
            f"no column caption1, caption2, ... among {sorted(row)}: rename the one that holds the captions"
        )
    return columns


def pick_column(row: dict[str, Any]) -> str:
    """The caption column that a row shows in its epoch: each in turn, the first chosen by the image's path."""
    columns = caption_columns(row)
    return columns[(stable_hash(row["image_path"]) + row["epoch"]) % len(columns)]


def told_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `attributes` of a row tells of its person, attribute -> value; nothing where the row has none.

    Raises:
        DataError: it holds something else than the JSON of an object; names the image.
    """
    told = row.get("attributes")
    try:
        found = json.loads(told) if told else {}
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DataError(
            f"{row.get('image_path')}: attributes: {told!r:.80} is no JSON of an object; write it as text such as "
            '{"coat.color": "red"}, or leave the column out'
        )
    return found


def captions_of(row: dict[str, Any]) -> list[str]:
    """The captions of a row, in order: its `captions`, or its `caption1`, `caption2`, ...

    Raises:
        DataError: it has neither.
    """
    if "captions" in row:
        return [row["captions"]] if isinstance(row["captions"], str) else list(row["captions"])
    return [row[name] for name in caption_columns(row)]


def all_captions(dataset: datasets.Dataset) -> tuple[list[str], torch.Tensor]:
    """Every caption of a data set, and the row of its image, int64 `(M,)`.

    Raises:
        DataError: there are no captions, or a row misses its image or a caption.
    """
    refuse_missing(dataset)
    names = [name for name in dataset.column_names if name == "captions" or is_caption_column(name)]
    # the images are left out, or they would be decoded
    rows = dataset.select_columns(names) if names else [dict.fromkeys(dataset.column_names)]
    captions: list[str] = []
    index: list[int] = []
    for number, row in enumerate(rows):
        own = captions_of(row)
        captions += own
        index += [number] * len(own)
    if not index:
        raise DataError("the data set has no captions: every list of captions is empty")
    return captions, torch.tensor(index)


def person_ids(dataset: datasets.Dataset) -> list[int]:
    """The person in each image; without a column `person_id` every image has a person of its own."""
    if "person_id" in dataset.column_names:
        return dataset["person_id"][:]
    return [stable_hash(path) for path in dataset["image_path"][:]]
