"""Reads scores of words that a method has written elsewhere."""

import json
import math
from typing import Any

import datasets

from dataset_webperson import DataError

from ..rows import caption_columns


def read_scores(path: str, test: datasets.Dataset) -> list[list[Any]]:
    """The scores of a JSON file, caption after caption, as the metric takes them.

    Raises:
        DataError: the file cannot be read, lacks an image or a caption, or holds what is neither a number nor a span
            with one; names the image.
    """
    names = caption_columns(test.column_names)
    places = [(row["image_path"], name) for row in test.remove_columns("image") for name in names]
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        scores = [content[image_path][name] for image_path, name in places]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not JSON of scores by image and caption ({error})") from error
    except KeyError as error:
        raise DataError(f"{path}: has no scores for {error}; every test image and caption needs some") from error
    for place, found in zip(places, scores, strict=True):
        for one in found if isinstance(found, list) else [found]:
            numbers = [one.get(key) for key in ("start", "end", "score")] if isinstance(one, dict) else [one]
            if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
                raise DataError(
                    f"{path}: {' '.join(place)}: {one!r} is no score; give a number or start, end and score"
                )
    return scores
