"""A stored data set of captioned images, by name, as training rows and test galleries."""

import os
from typing import NamedTuple, TypeAlias

import datasets
from datasets.exceptions import DatasetsError

from ..findings import DataError
from .image_column import cast_images, refuse_missing, with_image_paths
from .local_source import SPLIT_WORDS
from .streaming import ShuffledParquet

TrainingSet: TypeAlias = datasets.Dataset | ShuffledParquet
METADATA = ("metadata.jsonl", "metadata.csv")  # captions beside images, as `load_dataset` knows them
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves: of several splits, of one


class CaptionedSplits(NamedTuple):
    train: TrainingSet
    validation: datasets.Dataset | None  # where there is a test split beside it
    test: datasets.Dataset


def load_captioned(name: str, num_test_images: int, seed: int, streaming: bool = False) -> CaptionedSplits:
    """Training rows and test rows of a folder or a Hub id, both with images and captions.

    Splits are known by the words of `load_dataset`: `val`, `dev` and `validation` are one. Where there is no test
    split the validation split is the test; where there is neither, rows of `train` are held out.

    Args:
        name: Folder or Hub id.
        num_test_images: Rows to hold out: at random, or the first of a stream.
        seed: Of what is held out, and of the order of a stream.
        streaming: Read `train` from its parquet files as it is used.

    Raises:
        `DataError`: there is no such data set, it cannot be read, or it does not hold captioned images.
    """
    try:
        splits = _by_role(stored_splits(name, streaming), name)
        train, validation, test = _parts(splits, name, num_test_images, seed, streaming)
    except DataError:
        raise
    except (DatasetsError, OSError, ValueError) as error:  # an unknown name, no data files, broken parquet
        raise DataError(
            f"{name}: cannot be loaded as a data set ({error.__cause__ or error}); give a folder of parquet files, or "
            "a Hub id"
        ) from error
    for rows, needed in (
        (train, ("image", "image_path", "caption1")),
        (validation, ("image", "caption1")),
        (test, ("image", "caption1")),
    ):
        columns = needed if rows is None else list(rows.column_names or needed)
        if missing := [column for column in needed if column not in columns]:
            raise DataError(f"{name}: no column {', '.join(missing)}, only {', '.join(columns)}; rename yours")
    return CaptionedSplits(train, validation, test)


def _usable(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Rows with images that decode to pictures, each with a name of its own; one without image or caption raises."""
    if "image" in rows.column_names:
        rows = with_image_paths(cast_images(rows, name), name)
        refuse_missing(rows, name)
    return rows


def stored_splits(name: str, streaming: bool = False) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """All splits of a folder or a Hub id, under the names that they have.

    Raises:
        `DataError`: it cannot be streamed, or captions beside its images were not read.
    """
    if any(os.path.isfile(os.path.join(name, file)) for file in SAVED):
        if streaming:
            raise DataError(f"{name}: written by save_to_disk, without parquet files to stream; leave streaming out")
        saved = datasets.load_from_disk(name)
        return {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    splits = dict(datasets.load_dataset(name, streaming=streaming))
    unread = [file for file in METADATA if os.path.isfile(os.path.join(name, file))]
    if unread and not any(set(rows.column_names or ()) - {"image", "label"} for rows in splits.values()):
        raise DataError(
            f"{name}: {unread[0]} was not read, for names of images say which split they belong to; move the images "
            f"of each split into a folder of its name, train or test, with a {unread[0]} of its own"
        )
    return splits


def _by_role(
    splits: dict[str, datasets.Dataset | datasets.IterableDataset], name: str
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """The splits as `train`, `validation` and `test`, whatever words they are named by."""
    found: dict[str, str] = {}
    for split in map(str, splits):
        role = SPLIT_WORDS.get(split.lower())
        if role in found:
            raise DataError(f"{name}: {found[role]} and {split} are both {role} splits; leave one out")
        if role is not None:
            found[role] = split
    if "train" not in found:
        raise DataError(f"{name}: no split train, only {', '.join(map(str, splits))}; rename one")
    return {role: splits[split] for role, split in found.items()}


def _parts(
    splits: dict[str, datasets.Dataset | datasets.IterableDataset],
    name: str,
    num_test_images: int,
    seed: int,
    streaming: bool,
) -> tuple[TrainingSet, datasets.Dataset | None, datasets.Dataset]:
    train = splits["train"]
    galleries = [_gallery(splits[role], name) for role in ("validation", "test") if role in splits]
    if galleries:
        rows = ShuffledParquet(name, seed=seed) if streaming else _usable(train, name)
        return rows, galleries[0] if len(galleries) == 2 else None, galleries[-1]
    cure = f"cannot hold out num_test_images={num_test_images}"
    if num_test_images < 1:
        raise DataError(f"{name}: {cure}; give 1 or more, or a test split")
    if streaming:
        first = list(train.take(num_test_images + 1))
        if len(first) <= num_test_images:
            raise DataError(f"{name}: {cure} of {len(first)} rows; lower it")
        test = datasets.Dataset.from_list(first[:num_test_images], train.features)
        return ShuffledParquet(name, seed=seed, first_row=num_test_images), None, _usable(test, name)
    train = _usable(train, name)
    if num_test_images >= len(train):
        raise DataError(f"{name}: {cure} of {len(train)} rows; lower it")
    parts = train.train_test_split(test_size=num_test_images, seed=seed)
    return parts["train"], None, parts["test"]


def _gallery(rows: datasets.Dataset | datasets.IterableDataset, name: str) -> datasets.Dataset:
    """A split in full, with usable images."""
    if isinstance(rows, datasets.IterableDataset):
        rows = datasets.Dataset.from_list(list(rows), rows.features)
    return _usable(rows, name)
