"""The order of training rows. Each row carries its epoch, which with the seed decides all that is random about it."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import torch
import torch.utils.data

from dataset_webperson.rows.image_column import refuse_missing
from dataset_webperson.rows.streaming import ShuffledParquet

from ..rows import read_row, stable_hash

EpochKey = tuple[int, int]  # epoch, and index within it


class KeySampler(torch.utils.data.Sampler[EpochKey]):
    """A sampler whose order follows from its seed and its epoch only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        raise NotImplementedError


class EpochSampler(KeySampler):
    """Yields `(epoch, index)`, shuffled by seed and epoch, so that a row knows its epoch.

    Loader workers see the epoch without shared state, and an epoch resumed midway continues in the same order. Rows at
    the end of an epoch that do not fill a batch of `batch_size` are dropped. `shuffle=False` is for rows that shuffle
    themselves.
    """

    def __init__(self, num_rows: int, seed: int, batch_size: int = 1, shuffle: bool = True) -> None:
        super().__init__(seed)
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.shuffle = shuffle

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[EpochKey]:
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        order = torch.randperm(self.num_rows, generator=generator) if self.shuffle else torch.arange(self.num_rows)
        for index in order[: len(self)].tolist():
            yield self.epoch, index


class TrainingRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A `datasets.Dataset` indexed by `(epoch, index)`; each row carries its `epoch`.

    Raises:
        DataError: a row misses its image or a caption.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        refuse_missing(dataset, "the training set")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochKey) -> dict[str, Any]:
        epoch, index = key
        row = read_row(self.dataset, index)
        return {**row, "epoch": epoch}


class ParquetRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A `ShuffledParquet` indexed by `(epoch, position)`, with a lane for every loader worker of every process."""

    def __init__(self, dataset: ShuffledParquet, batch_size: int, processes: int, workers: int) -> None:
        self.dataset = dataset.arranged(batch_size=batch_size, lanes=processes * max(workers, 1))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochKey) -> dict[str, Any]:
        return {**self.dataset[key], "epoch": key[0]}


class StreamedRows(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A `datasets.IterableDataset` whose rows carry their `epoch`; every epoch has an order of its own."""

    def __init__(self, dataset: datasets.IterableDataset) -> None:
        self.dataset = dataset
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch.item()
        for row in self.dataset:
            yield {**row, "epoch": epoch}


class RepeatedRows(torch.utils.data.IterableDataset[dict[str, Any]]):
    """[`StreamedRows`] pass after pass without an end, so that training resumes exactly in whichever pass it was.

    Of each pass (each worker's share of it, with several workers) the rows that do not fill `rows_per_step` are
    dropped; a stream that never fills it ends at once.
    """

    def __init__(self, stream: StreamedRows, rows_per_step: int) -> None:
        self.stream = stream
        self.rows_per_step = rows_per_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)
            rows, filled = iter(self.stream), False
            while len(step := list(itertools.islice(rows, self.rows_per_step))) == self.rows_per_step:
                yield from step
                filled = True
            if not filled:
                return
