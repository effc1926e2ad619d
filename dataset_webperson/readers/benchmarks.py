"""Readers of the text-to-person benchmarks: CUHK-PEDES, ICFG-PEDES, RSTPReid, UFine6926, UFine3C, IIITD-20K.

`load_benchmark("cuhk-pedes", "data/CUHK-PEDES")` gives a `datasets.DatasetDict`, one row an image:

| column | type | |
|---|---|---|
| `image` | `Image` | the file, decoded when it is looked at; `images.to_rgb` makes any of them RGB |
| `image_path` | `string` | relative to the folder of the dataset |
| `captions` | `list[string]` | all captions of the image, in the order of the json |
| `person_id` | `int64` | 0 .. n-1 within train (in the order of the source ids), then on through the other splits |
| `source_person_id` | `int64` | the id in the json |
| `image_id` | `int64` | position of the image in the json, over all splits |
| `split` | `string` | the key of the `DatasetDict`: train, validation, test |

and every further column of the json. Where files may be damaged, take `images.open_image` on the path
(`data.cast_column("image", datasets.Image(decode=False))`): it names the file it fails on. A new benchmark is one
class like `CUHKPEDES` below.

Two layouts are read: the dataset's own json, and jsons split beforehand (`train_reid.json`,
`processed_data/train.json`, `cuhk_train.json`, each with its `val` and `test`), whose rows may hold one caption each.
"""

import json
import os
import random
import re
import warnings
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from ..findings import DataError, Findings
from .benchmark_copy import SPLITS, Benchmark, Counts, ImageRow, KnownCopy, read_copy


class CUHKPEDES(Benchmark):
    name = "CUHK-PEDES"
    folder = "CUHK-PEDES"
    json_names = ("reid_raw.json",)
    image_folders = ("imgs", "", "images")
    prefixes = ("cuhk", "cuhk-pedes")
    first_id = 1
    home = "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description"
    official = {
        "train": Counts(11003, 34054, 68126),
        "validation": Counts(1000, 3078, 6158),
        "test": Counts(1000, 3074, 6156),
    }


class ICFGPEDES(Benchmark):
    name = "ICFG-PEDES"
    folder = "ICFG-PEDES"
    json_names = ("ICFG-PEDES.json", "ICFG_PEDES.json")
    image_folders = ("imgs", "", "images", "ICFG_PEDES")
    prefixes = ("icfg", "icfg-pedes")
    first_id = 0
    home = "https://github.com/zifyloo/SSAN"
    official = {"train": Counts(3102, 34674, 34674), "test": Counts(1000, 19848, 19848)}


class RSTPReid(Benchmark):
    name = "RSTPReid"
    folder = "RSTPReid"
    json_names = ("data_captions.json",)
    image_folders = ("imgs", "", "images")
    prefixes = ("rstp", "rstpreid")
    first_id = 0
    home = "https://github.com/NjtechCVLab/RSTPReid-Dataset"
    official = {
        "train": Counts(3701, 18505, 37010),
        "validation": Counts(200, 1000, 2000),
        "test": Counts(200, 1000, 2000),
    }
    known_copies = (
        KnownCopy({"train": 3901, "validation": 100, "test": 100}, "this is the RSTPReid json from before 2022-10"),
    )
    id_starts_file_name = True


class UFine6926(Benchmark):
    name = "UFine6926"
    folder = "UFine6926"
    json_names = ("UFine6926.json", "UFine6926_Annotations.json")
    image_folders = ("", "images", "imgs", "UFine6926")
    prefixes = ("ufine", "ufine6926")
    first_id = 1
    home = "https://github.com/Zplusdragon/UFineBench"
    official_total = Counts(6926, 26206, 52412)


class UFine3C(Benchmark):
    """For evaluation alone: persons of several data sets, captions of several lengths and styles.

    Fields and counts are those of the page of UFineBench; `source` names the data set that an image comes from.
    """

    name = "UFine3C"
    folder = "UFine3C"
    json_names = ("UFine3C_Annotations.json", "UFine3C.json")
    image_folders = ("", "images", "imgs", "UFine3C")
    prefixes = ("ufine3c",)
    first_id = 1
    home = "https://github.com/Zplusdragon/UFineBench"
    official = {"test": Counts(2250, 7446, 37939)}
    only_split = "test"


class IIITD20K(Benchmark):
    """One image and two captions of each person.

    `Filtered.json`, as it is handed out, has neither splits nor ids: the scripts beside it number its entries from 0,
    put the first 15,000 into train and the next 2,500 into validation, and write one of three jsons. Of these, ICFG's
    names each image twice, with a caption each; with it the authors' own evaluation has every image twice in the
    gallery. Here an image is one row.
    """

    name = "IIITD-20K"
    folder = "IIITD-20K-Dataset"
    json_names = ("IIITD-20K-CUHK-FORMAT.json", "IIITD-20K-RSTP-FORMAT.json", "IIITD-20K-ICFG-FORMAT.json")
    image_folders = ("", "images", "imgs", "IIITD-20K")
    prefixes = ("iiitd", "iiitd-20k")
    first_id = 0
    home = "https://github.com/Visual-Conception-Group/Dense-Captioning-for-Text-Image-ReID"
    official = {
        "train": Counts(15000, 15000, 30000),
        "validation": Counts(2500, 2500, 5000),
        "test": Counts(2500, 2500, 5000),
    }
    caption_per_row = True
    raw_json = ("Filtered.json", "run format_CUHK.py, which comes with the data set, in that folder")


_CROPS = "python -m dataset_webperson.person_search_crops"


class CUHKSYSUTBPS(Benchmark):
    """Crops of the boxes of CUHK-SYSU-TBPS, as `person_search_crops` cuts them.

    Person 0 is whoever no caption of test describes. Official counts are of pictures and boxes, and not compared.
    """

    name = "CUHK-SYSU-TBPS"
    folder = "CUHK-SYSU-TBPS-crops"
    json_names = ("CUHK-SYSU-TBPS.json",)
    image_folders = ("imgs", "", "images")
    prefixes = ("cuhk-sysu-tbps",)
    first_id = 0
    home = "https://github.com/Dacun/Text-based-Person-Search"
    searched_alone = True
    raw_json = ("CUHK-SYSU-TBPS_test", f"cut the crops, {_CROPS}")


class PRWTBPS(CUHKSYSUTBPS):
    """Crops of the boxes of PRW-TBPS, as those of CUHK-SYSU-TBPS. Images of train have one caption each."""

    name = "PRW-TBPS"
    folder = "PRW-TBPS-crops"
    json_names = ("PRW-TBPS.json",)
    prefixes = ("prw-tbps",)
    raw_json = ("PRW-TBPS_test", f"cut the crops, {_CROPS}")


BENCHMARKS: dict[str, type[Benchmark]] = {
    "cuhk-pedes": CUHKPEDES,
    "icfg-pedes": ICFGPEDES,
    "rstpreid": RSTPReid,
    "ufine6926": UFine6926,
    "ufine3c": UFine3C,
    "iiitd-20k": IIITD20K,
    "cuhk-sysu-tbps": CUHKSYSUTBPS,
    "prw-tbps": PRWTBPS,
}


def class_by_name(kind: str, name: str | type, classes: dict[str, type]) -> type:
    """The class of `classes` under a name, in which upper case, `-` and `_` do not matter. A class is itself.

    Raises:
        `DataError`: nothing of this `kind` has that name.
    """
    if not isinstance(name, str):
        return name
    plain = re.sub(r"[-_ ]", "", name.lower())
    for key, found in classes.items():
        if key.replace("-", "") == plain:
            return found
    raise DataError(f"no {kind} {name!r}; known: {', '.join(classes)}")


def benchmark_class(name: str | type[Benchmark]) -> type[Benchmark]:
    """The class for a name such as `"cuhk-pedes"`; upper case, `-` and `_` do not matter. A class is itself.

    Raises:
        `DataError`: no benchmark of that name.
    """
    return class_by_name("benchmark", name, BENCHMARKS)


COUNT_KINDS = ("counts-differ", "old-copy", "split-missing")


def accept_counts(findings: Findings) -> None:
    """Other counts than the official ones are a warning from now on, no error."""
    for code in COUNT_KINDS:
        findings.set_severity(code, "warning")


def check_choices(on_count_mismatch: str, on_missing_images: str) -> None:
    """Raise `ValueError` where one of these options has a value that it does not know."""
    check_choice("on_count_mismatch", on_count_mismatch, ("error", "warn"))
    check_choice("on_missing_images", on_missing_images, ("error", "skip"))


def accept(findings: Findings, on_count_mismatch: str, on_missing_images: str) -> None:
    """Turn into warnings what these options let pass."""
    if on_count_mismatch == "warn":
        accept_counts(findings)
    if on_missing_images == "skip":
        for code in ("image-missing", "image-empty"):
            findings.set_severity(code, "warning")


def warn_of(findings: Findings, what: str) -> None:
    """Warn, at the line that called the loader, of all that was found in `what`."""
    for finding in findings:
        warnings.warn(f"{what}: {finding.describe()}", stacklevel=3)


def load_benchmark(
    name: str | type[Benchmark],
    root: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
    on_count_mismatch: str = "error",
    on_missing_images: str = "error",
    validation_persons: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Load a benchmark, checked before anything is returned.

    Args:
        name: a key of `BENCHMARKS`, such as `"cuhk-pedes"`, or a subclass of `Benchmark`.
        root: the benchmark's folder, or the folder above it.
        annotations: a json, or a folder of jsons split beforehand, if they do not lie in `root`.
        image_root: where the images lie, if not in `root`. No path of the json is followed out of it.
        on_count_mismatch: `"error"` or `"warn"`, when a split's persons, images or captions are not the official
            number, or an official split is missing.
        on_missing_images: `"error"`, or `"skip"` to leave out images that are missing or have 0 bytes, with a
            warning.
        validation_persons: hold out that many persons of train. The splits are then named `train_minus_validation` and
            `validation_from_train`, so no figure can be taken for an official one. Only where there is no official
            validation split.
        seed: which persons are held out.

    Returns:
        `DatasetDict` with the columns of the module's docstring; rows in the order of the json. Several rows for one
        image become one row with all captions (exact repeats are dropped where a row holds a list, as there the row
        came twice); further columns keep the first row's value.

    Raises:
        `DataError`: one error that lists all that keeps the copy from loading, each with file and cure.
    """
    check_choices(on_count_mismatch, on_missing_images)
    benchmark = benchmark_class(name)
    findings = Findings()
    paths = [os.fspath(path) if path is not None else None for path in (annotations, image_root)]
    copy = read_copy(benchmark, os.fspath(root), findings, *paths)
    accept(findings, on_count_mismatch, on_missing_images)
    if on_missing_images == "skip":
        copy.rows = [row for row in copy.rows if row.present]
    what = f"{benchmark.name} in {os.fspath(root)}"
    findings.raise_errors(what)
    if not copy.rows:
        raise DataError(f"{what}: no usable row in {', '.join(copy.json_files)}; check the json and the images")
    warn_of(findings, what)
    splits = {split: [row for row in copy.rows if row.split == split] for split in SPLITS}
    if validation_persons is not None:
        splits = _carve_validation(splits, validation_persons, seed, benchmark)
    return _to_datasets({split: rows for split, rows in splits.items() if rows}, copy.rows)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` with the choices when `value` is none of them."""
    if value not in choices:
        raise ValueError(f"{option}={value!r}; choose one of {', '.join(choices)}")


def _carve_validation(
    splits: dict[str, list[ImageRow]], count: int, seed: int, benchmark: type[Benchmark]
) -> dict[str, list[ImageRow]]:
    if splits["validation"]:
        raise ValueError(f"{benchmark.name} has a validation split of its own; leave validation_persons out")
    persons = sorted({row.person for row in splits["train"]})
    if not 0 < count < len(persons):
        raise ValueError(f"validation_persons={count}; train has {len(persons)} persons, both sides need at least one")
    held_out = set(random.Random(seed).sample(persons, count))
    return {
        "train_minus_validation": [row for row in splits["train"] if row.person not in held_out],
        "validation_from_train": [row for row in splits["train"] if row.person in held_out],
        "test": splits["test"],
    }


def _to_datasets(splits: dict[str, list[ImageRow]], all_rows: list[ImageRow]) -> DatasetDict:
    features = {
        "image": Image(),
        "image_path": Value("string"),
        "captions": List(Value("string")),
        "person_id": Value("int64"),
        "source_person_id": Value("int64"),
        "image_id": Value("int64"),
        "split": Value("string"),
    }
    image_ids = {row.image_path: position for position, row in enumerate(all_rows)}
    person_ids: dict[int, int] = {}
    for rows in splits.values():
        for person in sorted({row.person for row in rows}):
            person_ids.setdefault(person, len(person_ids))
    extra = _extra_columns(all_rows, features)
    features = Features({**features, **{column: feature for column, (_, feature, _) in extra.items()}})
    tables = {}
    for split, rows in splits.items():
        columns = {
            "image": [row.file for row in rows],
            "image_path": [row.image_path for row in rows],
            "captions": [row.captions for row in rows],
            "person_id": [person_ids[row.person] for row in rows],
            "source_person_id": [row.person for row in rows],
            "image_id": [image_ids[row.image_path] for row in rows],
            "split": [split] * len(rows),
        }
        for column, (source, _, as_text) in extra.items():
            values = [row.extra.get(source) for row in rows]
            columns[column] = [json.dumps(value) for value in values] if as_text else values
        tables[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(tables)


def _extra_columns(rows: list[ImageRow], taken: dict) -> dict[str, tuple[str, Any, bool]]:
    """Further columns of the json by name: their field, their feature, and whether values are kept as json text.

    Text is the way out for fields whose values have no common Arrow type. A name of the schema gets `source_` before
    it.
    """
    columns = {}
    for source in dict.fromkeys(name for row in rows for name in row.extra):
        column = f"source_{source}" if source in taken else source
        try:
            kind = pa.array([row.extra.get(source) for row in rows]).type
            columns[column] = (source, Features.from_arrow_schema(pa.schema([(column, kind)]))[column], False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            columns[column] = (source, Value("string"), True)
    return columns
