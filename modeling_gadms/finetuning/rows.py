"""Benchmark rows on their way into fine-tuning: every caption once an epoch, and batches balanced over persons."""

from collections import Counter, deque

import torch

from ..rows import all_captions, read_row, stable_hash
from ..training.samplers import TrainingRows


class CaptionRows(TrainingRows):
    """A `datasets.Dataset` whose items are pairs: an image with `n` captions is `n` of them.

    A pass over the items is an epoch as the benchmarks count it, every caption once. For an image it is `n` passes, so
    its rows carry `epoch * n`, `epoch * n + 1`, ... as their epochs, and so get augmentation and masks of their own.

    Args:
        dataset (`datasets.Dataset`): columns `image`, `image_path`, `person_id`, and `captions` (lists) or `caption1`,
            ...

    Attributes:
        persons (`dict[int, int]`): the class of each `person_id`, from 0, in the order of the ids.
        person_of_row (`list[int]`): class of each image.
        person_of_pair (`list[int]`): class of each item.

    Raises:
        ValueError: a column is missing, or there are no captions.
    """

    def __init__(self, dataset):
        missing = [name for name in ("image", "image_path", "person_id") if name not in dataset.column_names]
        if missing:
            raise ValueError(
                f"the training set lacks the column {', '.join(missing)}; fine-tuning needs image, image_path, "
                f"person_id and captions or caption1, ...; it has {dataset.column_names}"
            )
        super().__init__(dataset)
        self.captions, self.row_of_pair = all_captions(dataset)
        self.num_captions = torch.bincount(self.row_of_pair, minlength=len(dataset))
        self.first_pair = self.num_captions.cumsum(0) - self.num_captions
        person_ids = dataset["person_id"][:]
        self.persons = {person_id: place for place, person_id in enumerate(sorted(set(person_ids)))}
        self.person_of_row = [self.persons[person_id] for person_id in person_ids]
        self.person_of_pair = [self.person_of_row[row] for row in self.row_of_pair.tolist()]

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, key):
        epoch, index = key
        row = self.row_of_pair[index].item()
        turn = index - self.first_pair[row].item()
        return {
            **{name: value for name, value in read_row(self.dataset, row).items() if not name.startswith("caption")},
            "caption1": self.captions[index],
            "epoch": epoch * self.num_captions[row].item() + turn,
        }


class PersonSampler(torch.utils.data.Sampler):
    """Yields `(epoch, index)` so that a batch holds `instances` pairs of each of its persons.

    Every pair comes at least once an epoch, but for those that do not fill a last batch; a person whose pairs are no
    multiple of `instances` shows some of them again. The order follows from the seed and the epoch alone. A person
    comes twice in a batch only when too few others are left.

    Args:
        person_of_pair (`list[int]`): the person of every index.
        instances (`int`): pairs of a person in a batch.
        batch_size (`int`): pairs in the batch of all processes and chunks; a multiple of `instances`.
        seed (`int`): of the order.

    Raises:
        ValueError: a batch that is no multiple of `instances`, or wants more persons than there are.
    """

    def __init__(self, person_of_pair: list[int], instances: int, batch_size: int, seed: int):
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
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self):
        groups = sum(-(-len(pairs) // self.instances) for pairs in self.pairs_of_person.values())
        return groups // self.persons_per_batch * self.persons_per_batch * self.instances

    def __iter__(self):
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        groups = []  # (place in the epoch, person, pairs); the groups of a person are spread evenly
        for person, pairs in self.pairs_of_person.items():
            pairs = [pairs[place] for place in torch.randperm(len(pairs), generator=generator).tolist()]
            count = -(-len(pairs) // self.instances)
            pairs = (pairs * self.instances)[: count * self.instances]
            start = torch.rand((), generator=generator).item()
            for number in range(count):
                group = pairs[number * self.instances : (number + 1) * self.instances]
                groups.append(((number + start) / count, person, group))
        waiting = deque(sorted(groups))
        for _ in range(len(self) // (self.persons_per_batch * self.instances)):
            for group in self._deal(waiting):
                for index in group:
                    yield self.epoch, index

    def _deal(self, waiting: deque) -> list[list[int]]:
        """Take the groups of one batch; a person's second waits for the next batch, unless no other is left."""
        batch, persons, passed = [], set(), []
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
    """Stop where balancing over persons could only repeat one image of each.

    Raises:
        ValueError: no person has two images.
    """
    if max(Counter(rows.person_of_row).values()) == 1:
        raise ValueError(
            f"instances_per_person={instances} needs persons with several images, and all {len(rows.persons)} persons "
            "of the training set have one: leave the option out, or check the column person_id"
        )
