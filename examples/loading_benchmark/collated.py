"""Batches of the Trainer's collator from one loader worker: augmented in it, or bytes for the device to augment."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms import GADMSProcessor
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.image_decoding import PILLOW, TORCH
from modeling_gadms.training.samplers import ParquetRows
from modeling_gadms.training.shared_batches import SharedBatches

SMALL_CLIP = str(Path(__file__).parents[1] / "small_clip")
KINDS = (
    ("augmented in the worker", {}),
    ("augmented on the device", {"augment_later": True}),
    ("the same, decoded and resized by torch", {"augment_later": True, "image_decoding": TORCH}),
)


def collated(stream: ShuffledParquet, batch_size: int, count: int) -> dict[str, Callable[[], Iterator]]:
    """By name, what reads the first `count` rows as the Trainer's loader does, row by row."""
    processor = GADMSProcessor.from_clip_pretrained(SMALL_CLIP, (384, 128))
    keys, shared = [(0, position) for position in range(count)], SharedBatches(workers=1, slots=4)

    def read(loader: DataLoader) -> Iterator[torch.Tensor]:
        for batch in shared.in_turn(loader):
            yield from batch["pixel_values"]

    found: dict[str, Callable[[], Iterator]] = {}
    for name, options in KINDS:
        decoded = stream if options.get("image_decoding", PILLOW) == PILLOW else stream.undecoded()
        collator = PairCollator(processor, shared=shared, **options)
        rows = ParquetRows(decoded, batch_size, 1, 1)
        loader: DataLoader = DataLoader(
            rows, batch_size, sampler=keys, num_workers=1, collate_fn=collator, persistent_workers=True
        )
        next(iter(loader))  # the worker has started
        found[f"the Trainer's batches in one loader worker, {name}"] = partial(read, loader)
    return found
