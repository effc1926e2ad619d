"""Reads images for a gallery in batches, in the workers of a loader: hashes, pixels, and the reasons of bad ones."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dataset_webperson import DataError
from dataset_webperson.images import decode_rgb
from dataset_webperson.near_duplicates import perceptual_hash

from .items import Item


@dataclass
class Prepared:
    """A batch of items that were read.

    Attributes:
        places: of the items that have to be encoded, in the list that was given.
        facts: `(sha256, phash, size)` of each of them.
        pixel_values (`torch.Tensor` of shape `(len(places), 3, height, width)`): `None` where there are none.
        same: places of items whose content is that of their row, only their file's time differs.
        bad: `(place, reason)` of items that cannot be read.
    """

    places: list[int] = field(default_factory=list)
    facts: list[tuple[str, int, int]] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    same: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


class _Batches(Dataset):
    """Batches of items by number, so that any worker can read any batch."""

    def __init__(self, items: list[Item], known_sha256: dict[str, str], processor: Any, batch_size: int) -> None:
        self.items, self.known_sha256 = items, known_sha256
        self.processor, self.batch_size = processor, batch_size

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __getitem__(self, number: int) -> Prepared:
        first, batch, images = number * self.batch_size, Prepared(), []
        for place in range(first, min(first + self.batch_size, len(self.items))):
            item = self.items[place]
            try:
                if item.problem:
                    raise DataError(item.problem)
                data = item.read()
                digest = hashlib.sha256(data).hexdigest()
                if self.known_sha256.get(item.id) == digest:
                    batch.same.append(place)
                    continue
                image = decode_rgb(data, item.uri)
            except (DataError, OSError) as error:
                reason = " ".join(str(error).split())
                batch.bad.append((place, reason.removeprefix(f"{item.uri}: ")))
                continue
            images.append(image)
            batch.places.append(place)
            batch.facts.append((digest, perceptual_hash(image), len(data)))
        if images:
            batch.pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return batch


def prepared_batches(
    items: list[Item], known_sha256: dict[str, str], processor: Any, batch_size: int, num_workers: int
) -> Iterator[Prepared]:
    """The items in batches, in order.

    Args:
        items (`list[Item]`): what to read.
        known_sha256 (`dict[str, str]`): by id, of items that have a row already.
        processor: of the model.
        batch_size (`int`): items in a batch.
        num_workers (`int`): processes that read ahead.
    """
    batches = _Batches(items, known_sha256, processor, batch_size)
    return iter(DataLoader(batches, batch_size=None, num_workers=min(num_workers, len(batches))))
