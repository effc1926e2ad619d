"""Several data sets as one training set, in which no two share a person and small ones can be drawn more often."""

from collections.abc import Iterator, Mapping, Sequence

import datasets
import torch
from datasets import List, Value

from ..rows import captions_of, stable_hash
from ..training.samplers import EpochKey, KeySampler
from .rows import SET


def with_own_persons(sets: Sequence[Mapping[str, datasets.Dataset]]) -> list[dict[str, datasets.Dataset]]:
    """Shift the person ids of each set, given by its splits, so that no two sets have one in common.

    The first set keeps its ids if they begin at 0; within a set, ids keep their order and their distances.
    """
    shifted, free = [], 0
    for splits in sets:
        ids = {name: rows["person_id"][:] for name, rows in splits.items()}
        known = [person for persons in ids.values() for person in persons]
        shift = free - min(known)
        free += max(known) - min(known) + 1
        shifted.append(
            {name: _with_column(rows, "person_id", [p + shift for p in ids[name]]) for name, rows in splits.items()}
        )
    return shifted


def joined(parts: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """The rows of several data sets one after the other, by name of the set.

    Returns:
        `datasets.Dataset` with `image`, `image_path` (behind the name of the set, so that what is random about a row
        is its own), `captions`, `person_id` and `data_set`.
    """
    tables = []
    for name, rows in parts.items():
        texts = [captions_of(row) for row in rows.remove_columns("image")]
        table = _with_column(rows, "image_path", [f"{name}/{path}" for path in rows["image_path"]])
        table = _with_column(table, "captions", texts, List(Value("string")))
        table = _with_column(table, SET, [name] * len(rows), Value("string"))
        tables.append(table.select_columns(["image", "image_path", "captions", "person_id", SET]))
    return datasets.concatenate_datasets(tables)


def _with_column(rows: datasets.Dataset, name: str, values: list, feature: object = None) -> datasets.Dataset:
    feature = rows.features[name] if feature is None else feature
    kept = rows.remove_columns(name) if name in rows.column_names else rows
    return kept.add_column(name, values, feature=feature)


def draws_of_an_epoch(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many of an epoch's pairs come from each set: in proportion to `size ** (1 / temperature)`.

    The epoch has as many pairs as all sets together. At temperature 1 each set gives as many as it has; the higher the
    temperature, the nearer the sets come to equal shares. What rounding leaves over goes to the largest remainders.
    """
    weights = [size ** (1 / temperature) for size in sizes]
    total, exact = sum(sizes), [sum(sizes) * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda n: (counts[n] - exact[n], n))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


class TemperatureSampler(KeySampler):
    """Yields `(pass, index)`, shuffled over all sets, as many of each as [`draws_of_an_epoch`] says.

    Each set is gone through in passes that continue from epoch to epoch, every pair once per pass, each pass in an
    order of its own. A pair that comes twice in an epoch is in another pass then, with other augmentation and masks.
    The order follows from the seed and the epoch only.

    Args:
        set_of_pair (`list[str]`): the set of every index.
        temperature (`float`): 1 or more.
        batch_size (`int`): pairs in the batch of all processes and chunks; what does not fill one is dropped.
        seed (`int`): seed of the order.
    """

    def __init__(self, set_of_pair: list[str], temperature: float, batch_size: int, seed: int) -> None:
        super().__init__(seed)
        self.pairs_of_set: dict[str, list[int]] = {}
        for index, name in enumerate(set_of_pair):
            self.pairs_of_set.setdefault(name, []).append(index)
        self.draws = draws_of_an_epoch([len(pairs) for pairs in self.pairs_of_set.values()], temperature)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return sum(self.draws) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[EpochKey]:
        drawn: list[EpochKey] = []
        for (name, pairs), count in zip(self.pairs_of_set.items(), self.draws, strict=True):
            first, last = self.epoch * count, (self.epoch + 1) * count
            for turn in range(first // len(pairs), -(-last // len(pairs))):
                generator = torch.Generator().manual_seed(stable_hash(self.seed, name, turn))
                order = torch.randperm(len(pairs), generator=generator).tolist()
                start = turn * len(pairs)
                own = order[max(first - start, 0) : max(last - start, 0)]
                drawn += [(turn, pairs[place]) for place in own]
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        for place in torch.randperm(len(drawn), generator=generator)[: len(self)].tolist():
            yield drawn[place]
