"""Reads data whose false words are known, and scores of their words that a method has written elsewhere."""

import glob
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from dataset_webperson import DataError
from dataset_webperson.findings import reason_of
from dataset_webperson.rows.image_column import refuse_missing

from ..rows import caption_columns, read_row, told_attributes


def read_data(data_root: str) -> datasets.DatasetDict:
    """The splits `train` and `test` of a benchmark of false words.

    Raises:
        DataError: a file is missing or broken, a column is missing, a test image or caption is, what is listed is no
            word of its caption, or the test words are all true or all false; names the folder and the image.
    """
    files = {split: os.path.join(data_root, "data", f"{split}-*.parquet") for split in ("train", "test")}
    if not all(glob.glob(pattern) for pattern in files.values()):
        raise DataError(
            f"{data_root}: no data/train-*.parquet and data/test-*.parquet; write them with "
            "`python -m dataset_webperson.false_words`"
        )
    try:
        data = datasets.load_dataset("parquet", data_files=files)
    except (DatasetsError, OSError, ValueError) as error:  # Arrow's own errors are among the last
        reason = reason_of(error.__cause__ or error, data_root)
        raise DataError(f"{data_root}: data/*.parquet cannot be read ({reason}); copy or write them again") from error
    _refuse_unlisted(data["test"], data_root)
    return data


def _refuse_unlisted(test: datasets.Dataset, data_root: str) -> None:
    """Raise `DataError` unless every test caption lists its words, false and true ones."""
    names = caption_columns(test.column_names)
    needed = ["image", "image_path", "person_id", *(f"{name}_words" for name in names)]
    if missing := [name for name in needed if name not in test.column_names]:
        raise DataError(
            f"{data_root}: no column {', '.join(missing)} in data/test-*.parquet; the README.md that `python -m "
            "dataset_webperson.false_words` writes lists the columns"
        )
    refuse_missing(test, f"{data_root}: data/test-*.parquet")
    kinds = set()
    for row in test.remove_columns("image"):
        try:
            told_attributes(row)
        except DataError as error:
            raise DataError(f"{data_root}: {error}") from error
        for name in names:
            words = row[f"{name}_words"]
            for word in words if isinstance(words, list) else [words]:
                if not _is_word(word, row[name]):
                    raise DataError(
                        f"{data_root}: {row['image_path']} {name}_words: {word!r} is no word of {row[name]!r}; give "
                        "start, end (excluded), attribute and is_false"
                    )
                kinds.add(word["is_false"])
    if len(kinds) < 2:
        raise DataError(
            f"{data_root}: no word of data/test-*.parquet is {'true' if True in kinds else 'false'}; both "
            "false and true ones are needed, as is_false says"
        )


def _is_word(word: Any, caption: str) -> bool:
    if not isinstance(word, Mapping) or not isinstance(word.get("is_false"), bool):
        return False
    start, end = word.get("start"), word.get("end")
    places = isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(caption)
    return places and isinstance(word.get("attribute"), str)


def image_sizes(test: datasets.Dataset) -> list[tuple[int, int]]:
    """The different heights and widths of the images, that of the first image first.

    Raises:
        DataError: an image is broken.
    """
    return list(dict.fromkeys(read_row(test, number)["image"].size[::-1] for number in range(len(test))))


def read_scores(path: str, test: datasets.Dataset) -> list[list[Any]]:
    """The scores of a JSON file, caption after caption, as the metric takes them.

    Raises:
        DataError: the file cannot be read, lacks an image or a caption, or has for a caption what is neither a number
            for each of its words nor a list of spans; names the file, the image and the caption.
    """
    names = caption_columns(test.column_names)
    rows = test.select_columns(["image_path", *(f"{name}_words" for name in names)])
    places = [(row["image_path"], name, len(row[f"{name}_words"])) for row in rows for name in names]
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        scores = [content[image_path][name] for image_path, name, _ in places]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not JSON of scores by image and caption ({error})") from error
    except KeyError as error:
        raise DataError(f"{path}: has no scores for {error}; every test image and caption needs some") from error
    for (image_path, name, num_words), found in zip(places, scores, strict=True):
        if wrong := _wrong_with(found, num_words):
            raise DataError(f"{path}: {image_path} {name}: {wrong}")
    return scores


def _wrong_with(found: Any, num_words: int) -> str | None:
    """What keeps the scores of a caption from being any, and what would be."""
    if not isinstance(found, list):
        return f"{found!r} is no list; give a number for each of the {num_words} words, or a list of spans"
    for one in found:
        numbers = [one.get(key) for key in ("start", "end", "score")] if isinstance(one, dict) else [one]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            return f"{one!r} is no score; give a number or start, end and score"
    kinds = {isinstance(one, dict) for one in found}
    if len(kinds) > 1:
        return "has both numbers and spans; give the one or the other"
    if kinds == {False} and len(found) != num_words:
        return f"has {len(found)} scores for {num_words} words; give one for each, in their order"
    return None
