"""What one loader worker delivers: JPEGs that it is given, and rows that it reads."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.training.shared_batches import SharedBatches


def in_one_worker(
    jpegs: list[bytes], stream: ShuffledParquet, batch_size: int, count: int
) -> dict[str, Callable[[], Iterator]]:
    """By name, what delivers `count` images: JPEGs as torch hands over, and rows in memory that is filled again."""
    bare: DataLoader = DataLoader(
        jpegs,  # type: ignore[arg-type]  # a loader asks for `__getitem__` and a length alone
        batch_size,
        num_workers=1,
        collate_fn=bare_pixels,
        persistent_workers=True,
    )
    shared = SharedBatches(workers=1, slots=4)
    loader: DataLoader = DataLoader(
        stream.arranged(batch_size=batch_size, lanes=1),  # type: ignore[arg-type]
        batch_size,
        sampler=[(0, position) for position in range(count)],
        num_workers=1,
        collate_fn=partial(shared_pixels, shared),
        persistent_workers=True,
    )
    next(iter(bare)), next(iter(loader))  # the workers have started
    return {
        "bare loop in one loader worker": lambda: (image for batch in bare for image in batch),
        "`ShuffledParquet` in one loader worker": lambda: (
            image for batch in shared.in_turn(loader) for image in batch["pixel_values"]
        ),
    }


def resize(image: Image.Image) -> Image.Image:
    return image.resize((128, 384), Image.Resampling.BICUBIC)


def bare_pixels(jpegs: list[bytes]) -> torch.Tensor:
    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    return torch.from_numpy(np.stack([np.asarray(resize(image)) for image in images]))


def shared_pixels(shared: SharedBatches, rows: list[dict[str, Any]]) -> dict[str, Any]:
    pixels, place = shared.take((len(rows), 384, 128, 3), torch.uint8)
    for slot, row in zip(pixels, rows, strict=True):
        slot.numpy()[:] = resize(row["image"])
    return shared.through_pipe({"pixel_values": pixels, "shared_place": place})
