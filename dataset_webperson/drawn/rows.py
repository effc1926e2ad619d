"""Rows of the synthetic WebPerson: persons drawn and described, a pure function of the seed."""

import io
import json
from collections.abc import Iterator
from typing import Any

from PIL import Image

from .attributes import Person, sample_person, sample_view, true_attributes
from .captions import Caption, write_caption
from .figures import draw_person
from .twins import twin_of

# A person's id is its split's first id plus its place in the split, so it never depends on the splits' sizes.
FIRST_PERSON_ID = {"train": 0, "validation": 100_000_000, "test": 200_000_000}


def generate_rows(
    split: str,
    start: int,
    stop: int,
    *,
    image_size: tuple[int, int],
    views_per_person: int,
    noise_rate: float,
    seed: int,
    mistake_correlation: float = 0.0,
    twins: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rows of the persons `start` to `stop` (excluded) of a split, all views of a person one after the other.

    Args:
        split: "train", "validation" or "test". Captions are false at `noise_rate` in train, and true in the others.
        image_size: (height, width) in pixels. Nothing but the pictures depends on it.
        mistake_correlation: share of the attributes about which both captions of an image are wrong together.
        twins: whether each odd person of test is a twin of the one before (see [`twin_of`]). Both are described by
            captions that name the attribute in which they differ, and `twin_person_id` tells the other one.
    """
    rate = noise_rate if split == "train" else 0.0
    for index in range(start, stop):
        person, differing = sample_person(seed, split, index), None
        if twins and split == "test":
            person, differing = _one_of_twins(seed, split, index)
        for number in range(views_per_person):
            view = sample_view(seed, split, index, number)
            path = f"{split}/{index:06d}_{number}.png"
            row: dict[str, Any] = {
                "image": {"bytes": _png(draw_person(person, view, image_size)), "path": path},
                "image_path": path,
                "person_id": FIRST_PERSON_ID[split] + index,
                "attributes": json.dumps(true_attributes(person, view)),
            }
            if twins:
                row["twin_person_id"] = FIRST_PERSON_ID[split] + (index ^ 1) if differing else None
            for name in ("caption1", "caption2"):
                image = (seed, split, index, number)
                caption = write_caption(
                    person,
                    view,
                    rate,
                    *image,
                    name,
                    correlation=mistake_correlation,
                    shared=image,
                    naming=differing,
                )
                row |= _caption_columns(name, caption)
            yield row


def _one_of_twins(seed: int, split: str, index: int) -> tuple[Person, str]:
    """Person number `index` of a split of twins, and the attribute in which the other one differs."""
    first = index - index % 2
    person = sample_person(seed, split, first)
    twin, differing = twin_of(person, seed, split, first)
    return twin if index % 2 else person, differing


def _caption_columns(name: str, caption: Caption) -> dict[str, Any]:
    return {
        name: caption.text,
        f"{name}_words": [
            {"start": word.start, "end": word.end, "attribute": word.attribute, "is_false": word.is_false}
            for word in caption.words
        ],
        f"{name}_false_spans": [[word.start, word.end] for word in caption.words if word.is_false],
    }


def _png(image: Image.Image) -> bytes:
    """The picture as PNG: lossless, so that pixels are the same wherever they are read."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
