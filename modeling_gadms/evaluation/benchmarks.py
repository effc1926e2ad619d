"""The data that retrieval is measured on: a benchmark, the synthetic WebPerson, or a folder of your own."""

import os
from collections.abc import Mapping
from typing import Any

import datasets

from dataset_webperson import DataError, WebPerson, load_benchmark
from dataset_webperson.findings import reason_of
from dataset_webperson.readers.benchmark_copy import Counts
from dataset_webperson.readers.benchmarks import BENCHMARKS, benchmark_class
from dataset_webperson.rows.captioned import stored_splits
from dataset_webperson.rows.image_column import cast_images, with_image_paths

INCOMPLETE = "incomplete copy"  # behind the name of a benchmark, wherever a figure of such a copy stands


def display_name(benchmark: str) -> str:
    """`cuhk-pedes` -> `CUHK-PEDES`; for a folder, its name."""
    if benchmark == "synthetic":
        return "synthetic"
    if is_benchmark(benchmark):
        return benchmark_class(benchmark).name
    return os.path.basename(os.path.normpath(benchmark))


def is_benchmark(name: str) -> bool:
    """Whether `name` is one of the benchmarks that there is a reader for."""
    return name.lower().replace("-", "").replace("_", "") in {key.replace("-", "") for key in BENCHMARKS}


def copy_fault(benchmark: str, splits: Mapping[str, datasets.Dataset], split: str = "test") -> str | None:
    """Why figures of a split are not figures of the benchmark: its counts beside the official ones; else None.

    Another split may lack rows without harm to this one; only where the official counts are known of the whole alone
    (UFine6926), the whole is counted.

    Args:
        benchmark (`str`): name of a benchmark with a reader; anything else has no official counts.
        splits: what `load_benchmark` gave, before rows were left out by choice.
        split (`str`): the one that is measured.
    """
    if not is_benchmark(benchmark):
        return None
    kind = benchmark_class(benchmark)
    official, found = kind.official.get(split), splits.get(split)
    if official is not None and found is not None:
        counts, which = _counts(found), split
    elif kind.official_total is not None:
        counts, which, official = _counts(*splits.values()), "the whole", kind.official_total
    else:
        return None
    if counts == official:
        return None
    ids = {name: _counts(rows).ids for name, rows in splits.items()}
    known = [f"; {copy.message}" for copy in kind.known_copies if copy.ids == ids]
    return f"{which} has {counts}; official: {official}{''.join(known)}"


def _counts(*parts: datasets.Dataset) -> Counts:
    ids = {person for rows in parts for person in rows["source_person_id"][:]}
    captions = sum(len(own) for rows in parts for own in rows["captions"][:])
    return Counts(len(ids), sum(map(len, parts)), captions)


def load_evaluation_set(benchmark: str, root: str | None = None, **options: Any) -> datasets.Dataset:
    """The rows of [`load_with_fault`] alone."""
    return load_with_fault(benchmark, root, **options)[0]


def load_with_fault(
    benchmark: str,
    root: str | None = None,
    *,
    split: str = "test",
    annotations: str | None = None,
    image_root: str | None = None,
    on_count_mismatch: str = "error",
    on_missing_images: str = "error",
    synthetic_options: dict | None = None,
) -> tuple[datasets.Dataset, str | None]:
    """One split, one row per image, with `image`, `image_path`, captions and, where known, `person_id`.

    Beside it, what [`copy_fault`] finds: why its figures are not those of the benchmark.

    Args:
        benchmark (`str`): a name that there is a reader for, such as `cuhk-pedes`; `synthetic`; or a folder that
            `load_dataset` reads (parquet files, or images with a metadata.jsonl) with the columns `image`, `captions`
            (a list of strings, or `caption1`, `caption2`, ...) and `person_id` (numbers or names).
        root (`str`, *optional*): folder of the benchmark, or the folder above it.
        split (`str`): the split to load; a folder with a single split gives that one.
        annotations, image_root, on_count_mismatch, on_missing_images (`str`): see `load_benchmark`.
        synthetic_options (`dict`, *optional*): options of `WebPersonConfig`.

    Raises:
        DataError: no such benchmark, folder, split or column, or an incomplete copy.
    """
    if benchmark == "synthetic":
        builder = WebPerson(config_name="synthetic", **(synthetic_options or {}))
        builder.download_and_prepare()
        splits = {name: builder.as_dataset(split=name) for name in builder.info.splits}
    elif is_benchmark(benchmark):
        if root is None:
            raise DataError(f"{benchmark}: --data_root is missing; give its folder, or the one above it")
        splits = load_benchmark(
            benchmark,
            root,
            annotations=annotations,
            image_root=image_root,
            on_count_mismatch=on_count_mismatch,
            on_missing_images=on_missing_images,
        )
    elif os.path.isdir(benchmark):
        return _load_folder(benchmark, split), None
    else:
        raise DataError(
            f"{benchmark!r} is neither a benchmark ({', '.join(BENCHMARKS)}, synthetic) nor a folder that exists"
        )
    if split not in splits:
        raise DataError(f"{benchmark}: no split {split!r}; it has {', '.join(splits)}")
    return splits[split], copy_fault(benchmark, splits, split)


def _load_folder(folder: str, split: str) -> datasets.Dataset:
    try:
        splits = stored_splits(folder)
    except DataError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = reason_of(error, folder)
        raise DataError(
            f"{folder}: cannot be read as a data set ({reason}); put parquet files there, "
            "or images and a metadata.jsonl with file_name, captions and person_id"
        ) from error
    if split not in splits and len(splits) > 1:
        raise DataError(f"{folder}: no split {split!r}; it has {', '.join(splits)}")
    rows = splits[split if split in splits else next(iter(splits))]
    assert isinstance(rows, datasets.Dataset)  # not streamed
    names = rows.column_names
    if "image" not in names or not any(name == "captions" or name[:7] == "caption" for name in names):
        raise DataError(
            f"{folder}: the columns are {', '.join(names)}; rename them to image, captions (or caption1, caption2, "
            "...) and, if images share persons, person_id"
        )
    rows = with_image_paths(cast_images(rows, folder), folder)
    if "person_id" in names:
        ids = rows["person_id"][:]
        if None in ids:
            raise DataError(f"{folder}: row {ids.index(None)} has no person_id; give one, or drop the column")
        if not all(isinstance(person, int) for person in ids):
            number = {person: index for index, person in enumerate(sorted(set(map(str, ids))))}
            rows = rows.remove_columns("person_id")
            rows = rows.add_column("person_id", [number[str(person)] for person in ids])
    return rows
