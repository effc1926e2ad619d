"""A stored data set of captioned images, by name, as training rows and a test gallery."""

from typing import TypeAlias

import datasets
from datasets.exceptions import DatasetsError

from ..findings import DataError
from .image_column import cast_images, refuse_missing, with_image_paths
from .streaming import ShuffledParquet

TrainingSet: TypeAlias = datasets.Dataset | ShuffledParquet


def load_captioned(
    name: str, num_test_images: int, seed: int, streaming: bool = False
) -> tuple[TrainingSet, datasets.Dataset]:
    """Training rows and test rows of a folder or a Hub id, both with images and captions.

    Args:
        name: Folder or Hub id, with a split `train` and perhaps `test`.
        num_test_images: Rows held out of `train` where there is no `test`: at random, or the first of a stream.
        seed: Of what is held out, and of the order of a stream.
        streaming: Read `train` from its parquet files as it is used.

    Raises:
        `DataError`: there is no such data set, it cannot be read, or it does not hold captioned images.
    """
    try:
        train, test = _read(name, num_test_images, seed, streaming)
    except DataError:
        raise
    except (DatasetsError, OSError, ValueError) as error:  # an unknown name, no data files, broken parquet
        raise DataError(
            f"{name}: cannot be loaded as a data set ({error.__cause__ or error}); give a folder of parquet files, or "
            "a Hub id"
        ) from error
    for rows, needed in ((train, ("image", "image_path", "caption1")), (test, ("image", "caption1"))):
        columns = list(rows.column_names or needed)
        if missing := [column for column in needed if column not in columns]:
            raise DataError(f"{name}: no column {', '.join(missing)}, only {', '.join(columns)}; rename yours")
    return train, test


def _usable(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Rows with images that decode to pictures, each with a name of its own; one without image or caption raises."""
    if "image" in rows.column_names:
        rows = with_image_paths(cast_images(rows, name), name)
        refuse_missing(rows, name)
    return rows


def _read(name: str, num_test_images: int, seed: int, streaming: bool) -> tuple[TrainingSet, datasets.Dataset]:
    splits = datasets.load_dataset(name, streaming=streaming)
    if "train" not in splits:
        raise DataError(f"{name}: no split train, only {', '.join(map(str, splits))}; rename one")
    train = splits["train"]
    if not streaming:
        train = _usable(train, name)
        if "test" in splits:
            return train, _usable(splits["test"], name)
        if not 0 < num_test_images < len(train):
            raise DataError(
                f"{name}: cannot hold {num_test_images} test images out of {len(train)} rows; ask for fewer"
            )
        parts = train.train_test_split(test_size=num_test_images, seed=seed)
        return parts["train"], parts["test"]
    if "test" in splits:
        test = datasets.Dataset.from_list(list(splits["test"]), splits["test"].features)
        return ShuffledParquet(name, seed=seed), _usable(test, name)
    test = datasets.Dataset.from_list(list(train.take(num_test_images)), train.features)
    return ShuffledParquet(name, seed=seed, first_row=num_test_images), _usable(test, name)
