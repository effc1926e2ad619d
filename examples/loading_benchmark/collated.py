"""Batches of the Trainer's collator from one loader worker: augmented in it, or bytes for the device to augment."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms import GADMSProcessor
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.samplers import ParquetRows

SMALL_CLIP = str(Path(__file__).parents[1] / "small_clip")


def collated(stream: ShuffledParquet, batch_size: int, count: int) -> dict[str, Callable[[], Iterator]]:
    """By name, what reads the first `count` rows as the Trainer's loader does, row by row."""
    processor = GADMSProcessor.from_clip_pretrained(SMALL_CLIP, (384, 128))
    rows, keys = ParquetRows(stream, batch_size, 1, 1), [(0, position) for position in range(count)]

    def read(loader: DataLoader) -> Iterator:
        return (row for batch in loader for row in batch["pixel_values"])

    found: dict[str, Callable[[], Iterator]] = {}
    for name, later in (("augmented in the worker", False), ("augmented on the device", True)):
        collator = PairCollator(processor, augment_later=later)
        loader: DataLoader = DataLoader(
            rows, batch_size, sampler=keys, num_workers=1, collate_fn=collator, persistent_workers=True
        )
        next(iter(loader))  # the worker has started
        found[f"the Trainer's batches in one loader worker, {name}"] = partial(read, loader)
    return found
