"""Benchmark rows for fine-tuning: every caption once per epoch, and batches balanced over persons."""

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import datasets
import torch

from dataset_webperson import DataError

from ..rows import all_captions, read_row, stable_hash
from ..training.samplers import EpochKey, KeySampler, TrainingRows

SET = "data_set"  # the column that names the set of a row, where several are joined
Group = tuple[float, int, list[int]]  # place in the epoch, person, pairs


class CaptionRows(TrainingRows):
    """A `datasets.Dataset` whose items are pairs: an image with `n` captions makes `n` items.

    One pass over the items is an epoch as the benchmarks count it, with every caption once. An image is then seen `n`
    times, so its rows carry `epoch * n`, `epoch * n + 1`, ... as epochs, and each gets its own augmentation and masks.

    Args:
        dataset (`datasets.Dataset`): columns `image`, `image_path`, `person_id`, and `captions` (lists) or `caption1`,
            ...

    Attributes:
        persons (`dict[int, int]`): class of each `person_id`, from 0, in the order of the ids.
        person_of_row (`list[int]`): class of each image.
        person_of_pair (`list[int]`): class of each item.
        set_of_pair (`list[str]`): the data set of each item; all "" where there is one.

    Raises:
        DataError: a column is missing, or there are no captions.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        missing = [name for name in ("image", "image_path", "person_id") if name not in dataset.column_names]
        if missing:
            raise DataError(
                f"the training set lacks the column {', '.join(missing)}; fine-tuning needs image, image_path, "
                f"person_id and captions or caption1, ...; it has {dataset.column_names}"
            )
        super().__init__(dataset)
        self.captions, row_of_pair = all_captions(dataset)
        num_captions = torch.bincount(row_of_pair, minlength=len(dataset))
        self.row_of_pair: list[int] = row_of_pair.tolist()
        self.num_captions: list[int] = num_captions.tolist()
        self.first_pair: list[int] = (num_captions.cumsum(0) - num_captions).tolist()

        person_ids = dataset["person_id"][:]
        if None in person_ids:
            raise DataError(
                f"row {person_ids.index(None)}: person_id is None; leave out the rows whose person is unknown"
            )
        self.persons = {person_id: place for place, person_id in enumerate(sorted(set(person_ids)))}
        self.person_of_row = [self.persons[person_id] for person_id in person_ids]
        self.person_of_pair = [self.person_of_row[row] for row in self.row_of_pair]
        sets = dataset[SET][:] if SET in dataset.column_names else [""] * len(dataset)
        self.set_of_pair: list[str] = [sets[row] for row in self.row_of_pair]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, key: EpochKey) -> dict[str, Any]:
        epoch, index = key
        row = self.row_of_pair[index]
        turn = index - self.first_pair[row]
        columns = read_row(self.dataset, row)
        return {
            **{name: value for name, value in columns.items() if not name.startswith("caption")},
            "caption1": self.captions[index],
            "epoch": epoch * self.num_captions[row] + turn,
        }


class PersonSampler(KeySampler):
    """Yields `(epoch, index)` so that a batch holds `instances` pairs of each of its persons.

    Every pair comes at least once per epoch, except those that do not fill a last batch; if a person's pairs are not a
    multiple of `instances`, some come again. The order follows from the seed and the epoch only. A person comes twice
    in a batch only if too few others are left.

    Args:
        person_of_pair (`list[int]`): person of every index.
        instances (`int`): pairs per person in a batch.
        batch_size (`int`): pairs in the batch of all processes and chunks; a multiple of `instances`.
        seed (`int`): seed of the order.

    Raises:
        ValueError: the batch is not a multiple of `instances`, or needs more persons than there are.
    """

    def __init__(self, person_of_pair: list[int], instances: int, batch_size: int, seed: int) -> None:
        super().__init__(seed)
        self.pairs_of_person: dict[int, list[int]] = {}
        for index, person in enumerate(person_of_pair):
            self.pairs_of_person.setdefault(person, []).append(index)
        self.instances = instances
        self.persons_per_batch, rest = divmod(batch_size, instances)
        if rest or self.persons_per_batch > len(self.pairs_of_person):
            raise ValueError(
                f"instances_per_person={instances} does not fit a batch of {batch_size} pairs: it must divide it, and "
                f"the {len(self.pairs_of_person)} persons of the training set must fill it"
            )

    def __len__(self) -> int:
        groups = sum(math.ceil(len(pairs) / self.instances) for pairs in self.pairs_of_person.values())
        return groups // self.persons_per_batch * self.persons_per_batch * self.instances

    def __iter__(self) -> Iterator[EpochKey]:
        waiting = deque(sorted(self._groups()))
        for _ in range(len(self) // (self.persons_per_batch * self.instances)):
            for group in self._deal(waiting):
                for index in group:
                    yield self.epoch, index

    def _groups(self) -> Iterator[Group]:
        """Pairs of one person, `instances` at a time; the groups of a person are spread evenly over the epoch."""
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        for person, pairs in self.pairs_of_person.items():
            shuffled = [pairs[place] for place in torch.randperm(len(pairs), generator=generator).tolist()]
            count = math.ceil(len(shuffled) / self.instances)
            # some pairs come again to fill the last group
            shuffled = (shuffled * self.instances)[: count * self.instances]
            start = torch.rand((), generator=generator).item()
            for number in range(count):
                first = number * self.instances
                yield (number + start) / count, person, shuffled[first : first + self.instances]

    def _deal(self, waiting: deque[Group]) -> list[list[int]]:
        """Take the groups of one batch; a second group of a person waits for the next, unless no others are left."""
        batch: list[list[int]] = []
        passed: list[Group] = []
        persons: set[int] = set()
        while waiting and len(batch) < self.persons_per_batch:
            place, person, group = waiting.popleft()
            if person in persons:
                passed.append((place, person, group))
            else:
                persons.add(person)
                batch.append(group)
        while len(batch) < self.persons_per_batch:
            batch.append(passed.pop(0)[2])
        waiting.extendleft(reversed(passed))
        return batch


def refuse_lone_images(rows: CaptionRows, instances: int) -> None:
    """Refuse a training set in which balancing over persons could only repeat one image of each.

    Raises:
        DataError: no person has two images.
    """
    if max(Counter(rows.person_of_row).values()) == 1:
        raise DataError(
            f"instances_per_person={instances} needs persons with several images, and all {len(rows.persons)} persons "
            "of the training set have one: leave the option out, or check the column person_id"
        )
