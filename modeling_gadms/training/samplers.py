"""Rows on their way into training: which row when, and everything random about it decided by the row itself."""

import torch
import torch.utils.data

from ..rows import read_row, stable_hash


class EpochSampler(torch.utils.data.Sampler):
    """Yields `(epoch, index)`, shuffled by seed and epoch, so that a row knows which pass over the data it is in.

    Loader workers see the epoch without shared state, and an epoch resumed half-way goes on in the same order. Of each
    epoch's order, the rows at the end that do not fill a batch of `batch_size` are left out. `shuffle=False` is for
    rows that shuffle themselves.
    """

    def __init__(self, num_rows: int, seed: int, batch_size: int = 1, shuffle: bool = True):
        self.num_rows = num_rows
        self.seed = seed
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self):
        return self.num_rows // self.batch_size * self.batch_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        order = torch.randperm(self.num_rows, generator=generator) if self.shuffle else torch.arange(self.num_rows)
        for index in order[: len(self)].tolist():
            yield self.epoch, index


class TrainingRows(torch.utils.data.Dataset):
    """A `datasets.Dataset` addressed by `(epoch, index)`; each row carries its `epoch`."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        row = read_row(self.dataset, index)
        return {**row, "epoch": epoch}


class ParquetRows(torch.utils.data.Dataset):
    """A `ShuffledParquet` addressed by `(epoch, position)`, with a lane for every loader worker of every process."""

    def __init__(self, dataset, batch_size: int, processes: int, workers: int):
        self.dataset = dataset.arranged(batch_size=batch_size, lanes=processes * max(workers, 1))

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        return {**self.dataset[key], "epoch": key[0]}


class StreamedRows(torch.utils.data.IterableDataset):
    """A `datasets.IterableDataset` whose rows carry their `epoch`; shuffled anew in each."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that outlive an epoch

    def set_epoch(self, epoch: int):
        self.epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self):
        epoch = self.epoch.item()
        for row in self.dataset:
            yield {**row, "epoch": epoch}
