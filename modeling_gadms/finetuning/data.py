"""The data of fine-tuning: one benchmark or several, each with its train, validation and test."""

from dataclasses import dataclass, field

import datasets

from dataset_webperson import DataError, WebPerson, load_benchmark
from dataset_webperson.readers.benchmarks import benchmark_class

from ..evaluation.benchmarks import copy_fault, display_name
from ..training.command_line import refuse_image_size
from .joint import joined, with_own_persons

ROLES = ("train", "validation", "test")


@dataclass
class FineTuningDataArguments:
    """What to fine-tune, and on what."""

    _argument_group_name = "model and data"

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a GA-DMS, a CLIP or other towers."})
    dataset_name: list[str] = field(metadata={"help": "Benchmarks by name, or `synthetic`: one, or several jointly."})
    data_root: list[str] = field(
        default_factory=list,
        metadata={"help": "The benchmark's folder, or the one above it; one for all or for each."},
    )
    annotations: list[str] = field(
        default_factory=list, metadata={"help": "Its json (or of each), if not below --data_root."}
    )
    image_root: list[str] = field(
        default_factory=list, metadata={"help": "Where its images lie (or of each), if not below --data_root."}
    )
    on_count_mismatch: str = field(default="error", metadata={"help": "`warn`: accept an incomplete benchmark."})
    on_missing_images: str = field(default="error", metadata={"help": "`skip`: leave out images that are missing."})
    validation_persons: int | None = field(
        default=None, metadata={"help": "Number of persons to hold out of train, where there is no validation split."}
    )
    keep_overlap: bool = field(
        default=False,
        metadata={"help": "Of several data sets: train also on persons whom another one is validated or tested on."},
    )
    select_on_test: bool = field(default=False, metadata={"help": "Choose the best epoch on test, and record that."})
    image_size: list[int] = field(default_factory=lambda: [384, 128], metadata={"help": "For a CLIP: height, width."})
    num_persons: int = field(default=4000, metadata={"help": "Synthetic: persons in train, two images each."})
    noise_rate: float = field(default=0.0, metadata={"help": "Synthetic: share of false attributes in training."})

    def __post_init__(self) -> None:
        refuse_image_size(self.image_size)
        for name in ("data_root", "annotations", "image_root"):
            if len(getattr(self, name)) not in (0, 1, len(self.dataset_name)):
                raise ValueError(
                    f"--{name}: {len(getattr(self, name))} values for {len(self.dataset_name)} data sets; give one or "
                    "as many"
                )
        shown = [display_name(name) for name in self.dataset_name]
        if twice := {name for name in shown if shown.count(name) > 1}:
            raise ValueError(f"--dataset_name: {', '.join(sorted(twice))} is given twice")

    def place_of(self, number: int) -> list[str | None]:
        """`data_root`, `annotations` and `image_root` of one data set."""
        values = (self.data_root, self.annotations, self.image_root)
        return [found[number if len(found) > 1 else 0] if found else None for found in values]


@dataclass
class TuningSet:
    """One data set, by role.

    Attributes:
        name (`str`): as tables show it.
        rows (`dict[str, datasets.Dataset]`): `train`, `validation` (on which the best epoch is chosen) and `test`.
        splits (`dict[str, str]`): how the benchmark names the split of each role.
        incomplete (`str`, *optional*): why figures on it are not figures of the benchmark.
    """

    name: str
    rows: dict[str, datasets.Dataset]
    splits: dict[str, str]
    incomplete: str | None = None


def load_sets(args: FineTuningDataArguments, image_size: tuple[int, int], seed: int) -> list[TuningSet]:
    """The data sets that are named; no two of them share a `person_id`.

    Raises:
        DataError: one cannot be loaded, or has no validation split and nothing stands in for it.
    """
    sets = [_load(args, number, image_size, seed) for number in range(len(args.dataset_name))]
    if len(sets) > 1:
        for one, rows in zip(sets, with_own_persons([one.rows for one in sets]), strict=True):
            one.rows = rows
    return sets


def _load(args: FineTuningDataArguments, number: int, image_size: tuple[int, int], seed: int) -> TuningSet:
    name, (root, annotations, image_root) = args.dataset_name[number], args.place_of(number)
    if name == "synthetic":
        builder = WebPerson(
            config_name="synthetic",
            image_size=image_size,
            num_train_persons=args.num_persons,
            noise_rate=args.noise_rate,
            seed=seed,
        )
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    elif root is None:
        raise DataError(f"{name}: where is it? Pass its folder as --data_root")
    elif only := benchmark_class(name).only_split:
        raise DataError(
            f"{name}: it has {only} alone, nothing to train on; measure on it with examples/evaluate_retrieval.py"
        )
    else:
        # where several are named, persons are held out of those that have no validation split of their own
        own = len(args.dataset_name) > 1 and "validation" in benchmark_class(name).official
        loaded = load_benchmark(
            name,
            root,
            annotations=annotations,
            image_root=image_root,
            on_count_mismatch=args.on_count_mismatch,
            on_missing_images=args.on_missing_images,
            validation_persons=None if own else args.validation_persons,
        )
    train = "train" if "train" in loaded else "train_minus_validation"
    validation = "validation" if "validation" in loaded else "validation_from_train"
    if args.select_on_test:
        validation = "test"
    elif validation not in loaded:
        raise DataError(
            f"{name}: no validation split to choose the best epoch on; hold persons out of train with "
            "--validation_persons 200, or choose on test with --select_on_test, which metrics.json will record"
        )
    splits = dict(zip(ROLES, (train, validation, "test"), strict=True))
    rows = {role: loaded[split] for role, split in splits.items()}
    return TuningSet(display_name(name), rows, splits, copy_fault(name, {splits[role]: rows[role] for role in ROLES}))


def training_rows(sets: list[TuningSet]) -> datasets.Dataset:
    """What is trained on: the train of one set as it is, those of several joined."""
    return sets[0].rows["train"] if len(sets) == 1 else joined({one.name: one.rows["train"] for one in sets})


def held_out_rows(sets: list[TuningSet], role: str) -> datasets.Dataset | dict[str, datasets.Dataset]:
    """Validation or test: of one set as it is, of several by name."""
    return sets[0].rows[role] if len(sets) == 1 else {one.name: one.rows[role] for one in sets}
