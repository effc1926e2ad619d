"""The `datasets` builder of WebPerson, from the Hub, from a folder, or drawn.

builder = WebPerson(config_name="synthetic", image_size=(64, 32), num_train_persons=4000)
builder = WebPerson(config_name="local", data_dir="data/webperson", on_bad_images="warn")
builder = WebPerson(config_name="webperson-1m")
builder.download_and_prepare(num_proc=2)
train = builder.as_dataset(split="train")
"""

import hashlib
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from .drawn.attributes import VERSION
from .drawn.rows import generate_rows
from .findings import DataError
from .removed import read_removed, removed_beside
from .rows.local_source import FORMATS, ParquetSource, Source, open_source, source_features
from .rows.preparation import RowOptions, RowReport, describe_summary, merge_summaries, prepare_rows

# Persons in a unit of work; `num_proc` processes share the units, in order.
CHUNK = 50
# Persons of a split are numbered below this, see `synthetic.FIRST_PERSON_ID`.
MAX_PERSONS = 100_000_000
# Repository and number of rows of each released WebPerson. The byte counts on their cards are wrong: only rows count.
RELEASES = {
    "webperson-1m": ("Kaichengalex/WebPerson-1M", 1_000_000),
    "webperson-5m": ("Kaichengalex/WebPerson-5M", 5_002_723),
}

WORD = {
    "start": datasets.Value("int32"),
    "end": datasets.Value("int32"),
    "attribute": datasets.Value("string"),
    "is_false": datasets.Value("bool"),
}


@dataclass
class WebPersonConfig(datasets.BuilderConfig):
    """What a WebPerson holds. A value that makes no sense raises one `ValueError` that says so.

    Of "local" (a folder), "webperson-1m" and "webperson-5m" (the Hub):

    Args:
        data_dir: The folder of "local": parquet shards, WebDataset tars, or json lists and their images, see
            `local_source`.
        source_format: "parquet", "webdataset" or "images", for a folder that holds more than one of them.
        repository: Hub id, or folder, in the place of the released repository.
        expected_rows: Rows there must be, left-out ones included. By default the declared number of a released
            repository, and any number in a folder; 0 is any number.
        removed: A `removed.parquet` whose pictures are left out, for an older copy of a release. By default the one
            that lies in `data_dir`.
        on_bad_images, clean_captions, min_side: See `row_preparation.RowOptions`.

    Of "synthetic":

    Args:
        image_size: (height, width) in pixels, the height 32 to 1024, the width 16 to 1024, and height/width between
            1 and 4. Persons and captions do not depend on it.
        num_train_persons, num_validation_persons, num_test_persons: Persons of each split, at least two each, for
            retrieval needs a wrong answer. Persons of one split never appear in another.
        views_per_person: Pictures of each person, at least 1; each has two captions.
        noise_rate: Probability that an attribute word of a training caption is false, in [0, 1]; the captions of
            validation and test are true.
        mistake_correlation: Share of the attributes, in [0, 1], about which both captions of an image are wrong
            together and in the same way, as two captioners that see alike would be.
        twins: Whether each odd person of test is a twin of the even one before, equal in all but one attribute, which
            their captions name; the column `twin_person_id` tells the other one. `num_test_persons` is then even.
        seed: A whole number. The same seed gives the same rows on any machine.
    """

    name: str = "synthetic"
    image_size: tuple[int, int] = (128, 64)
    num_train_persons: int = 4000
    num_validation_persons: int = 100
    num_test_persons: int = 400
    views_per_person: int = 2
    noise_rate: float = 0.3
    mistake_correlation: float = 0.0
    twins: bool = False
    seed: int = 0
    source_format: str | None = None
    repository: str | None = None
    expected_rows: int | None = None
    removed: str | None = None
    on_bad_images: str = "error"
    clean_captions: bool = True
    min_side: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in WebPerson.CONFIG_NAMES:
            raise ValueError(f"WebPerson has no config {self.name!r}; it has {', '.join(WebPerson.CONFIG_NAMES)}")
        self._check_source()
        size = self.image_size
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(_is_whole(side) for side in size):
            raise ValueError(f"image_size must be two whole numbers (height, width), not {size!r}")
        height, width = size
        self.image_size = (height, width)
        if not (32 <= height <= 1024 and 16 <= width <= 1024 and width <= height <= 4 * width):
            raise ValueError(
                f"image_size is (height, width) with height 32..1024, width 16..1024 and height 1 to 4 times the "
                f"width, not {size!r}"
            )
        for option in ("num_train_persons", "num_validation_persons", "num_test_persons"):
            persons = getattr(self, option)
            if not _is_whole(persons) or not 2 <= persons <= MAX_PERSONS:
                raise ValueError(f"{option} must be a whole number of at least 2 persons, not {persons!r}")
        if not _is_whole(self.views_per_person) or not 1 <= self.views_per_person <= 100:
            raise ValueError(f"views_per_person must be a whole number from 1 to 100, not {self.views_per_person!r}")
        for option, what in (("noise_rate", "probability"), ("mistake_correlation", "share")):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{option} is a {what} between 0 and 1, not {value!r}")
            setattr(self, option, float(value))
        if not isinstance(self.twins, bool):
            raise ValueError(f"twins must be True or False, not {self.twins!r}")
        if self.twins and self.num_test_persons % 2:
            raise ValueError(
                f"twins come in pairs: the number of test persons must be even, got {self.num_test_persons}"
            )
        if not _is_whole(self.seed):
            raise ValueError(f"seed must be a whole number, not {self.seed!r}")

    def _check_source(self) -> None:
        self.row_options()
        if (self.name == "local") != (self.data_dir is not None):
            raise ValueError(
                f"data_dir is the folder of the config 'local'; {self.name!r} has data_dir={self.data_dir!r}"
            )
        if self.source_format is not None and (self.name != "local" or self.source_format not in FORMATS):
            raise ValueError(
                f"source_format of the config 'local' is one of {', '.join(FORMATS)}, not {self.source_format!r}"
            )
        if self.name in RELEASES:
            repository, rows = RELEASES[self.name]
            self.repository = repository if self.repository is None else self.repository
            self.expected_rows = rows if self.expected_rows is None else self.expected_rows
        elif self.repository is not None:
            raise ValueError(f"repository belongs to the configs {', '.join(RELEASES)}, not to {self.name!r}")
        if self.expected_rows is not None and (not _is_whole(self.expected_rows) or self.expected_rows < 0):
            raise ValueError(f"expected_rows must be a whole number, not {self.expected_rows!r}")

    def row_options(self) -> RowOptions:
        return RowOptions(self.on_bad_images, self.clean_captions, self.min_side)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The name of the cache folder: every option counts, given or left at its default, and a folder's files."""
        options = {name: value for name, value in vars(self).items() if name not in ("name", "version", "description")}
        state = source_state(open_source(self.data_dir, self.source_format), self.data_dir) if self.data_dir else []
        if listed := self.removed or removed_beside(self.data_dir):
            state.append(sorted(read_removed(listed)))
        text = json.dumps([options, state, repr(custom_features)], sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def source_state(source: Source, root: str) -> list:
    """What changes when the files of a folder do: size and time of each shard, time of the folder of images."""
    files = [(shard, os.stat(shard).st_size, os.stat(shard).st_mtime_ns) for shard in source.shards]
    folders = [os.path.join(root, name) for name in ("", "images", "imgs")]
    times = [os.stat(folder).st_mtime_ns for folder in folders if os.path.isdir(folder)]
    return [files, times if source.format == "images" else []]


class WebPerson(datasets.GeneratorBasedBuilder):
    """Captioned pedestrians: `image, image_path, caption1, caption2`, and the source's further columns.

    "local" has the splits that the names of its files say, "train" where they say none; "webperson-1m" and
    "webperson-5m" have "train". Their images are decoded once on the way and embedded; `report()` says what was left
    out and which captions were changed. The synthetic one has "train", "validation", "test".

    The config "synthetic" has columns more, for study: `caption1_words` and `caption2_words`, the character span,
    attribute and truth of every attribute word; `caption1_false_spans` and `caption2_false_spans`, the [start, end]
    of the false ones; `attributes`, a JSON object of what is true of the person in this view; with `twins`,
    `twin_person_id`, which is null outside test.
    """

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = WebPersonConfig
    CONFIG_NAMES = ("synthetic", "local", *RELEASES)
    # Rows of a record batch: a few megabytes of pictures.
    DEFAULT_WRITER_BATCH_SIZE = 256

    def __init__(self, *args: Any, dataset_name: str = "webperson", **kwargs: Any) -> None:
        super().__init__(*args, dataset_name=dataset_name, **kwargs)

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """As in `datasets`; then one warning reports what was left out or changed.

        Raises:
            `DataError`: a folder or repository that cannot be used as it is; names the file and the cure.
        """
        try:
            super().download_and_prepare(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise
        if self.config.name == "synthetic":
            return
        summary, expected = self.report(), self.config.expected_rows
        read = summary.get("rows", {}).get("read", 0)
        if expected and read != expected:
            raise DataError(_wrong_count(self.config.data_dir or self.config.repository, read, expected))
        lines = describe_summary(summary, os.path.join(self.report_dir, "*.tsv"))
        if not summary.get("rows", {}).get("kept"):
            raise DataError(f"{self.config.data_dir or self.config.repository}: no usable row; {'; '.join(lines)}")
        if lines and self.config.on_bad_images != "skip":
            warnings.warn(f"{self.config.data_dir or self.config.repository}: {'; '.join(lines)}", stacklevel=2)

    @property
    def report_dir(self) -> str:
        """Folder of the rows left out (`*.tsv`) and the counts of changes (`*.json`), one file of each per shard."""
        return os.path.join(self._cache_dir_root, "webperson_reports", self.config_id)

    def report(self) -> dict[str, Any]:
        """Rows read, kept and left out, and captions changed, with examples; of all shards prepared so far."""
        names = sorted(os.listdir(self.report_dir)) if os.path.isdir(self.report_dir) else []
        summaries = []
        for name in names:
            if name.endswith(".json"):
                with open(os.path.join(self.report_dir, name), encoding="utf-8") as file:
                    summaries.append(json.load(file))
        return merge_summaries(summaries)

    def _info(self) -> datasets.DatasetInfo:
        if self.config.name != "synthetic":  # the features are those of the source, see `_split_generators`
            return datasets.DatasetInfo(description="Person images from the web with two generated captions each.")
        features: dict[str, Any] = {
            "image": datasets.Image(),
            "image_path": datasets.Value("string"),
            "caption1": datasets.Value("string"),
            "caption2": datasets.Value("string"),
            "person_id": datasets.Value("int64"),
            "attributes": datasets.Value("string"),
        }
        for caption in ("caption1", "caption2"):
            features[f"{caption}_words"] = datasets.List(WORD)
            features[f"{caption}_false_spans"] = datasets.List(datasets.List(datasets.Value("int32")))
        if self.config.twins:
            features["twin_person_id"] = datasets.Value("int64")
        return datasets.DatasetInfo(
            description="Drawn pedestrians with captions of which a known part is false.",
            features=datasets.Features(features),
        )

    def _open_source(self, dl_manager: datasets.DownloadManager) -> Source:
        if self.config.name == "local":
            source = open_source(self.config.data_dir, self.config.source_format)
        else:
            files = datasets.load_dataset_builder(self.config.repository).config.data_files
            source = ParquetSource({split: tuple(dl_manager.download(list(names))) for split, names in files.items()})
        expected, rows = self.config.expected_rows, source.count()
        if expected and rows is not None and rows != expected:
            raise DataError(_wrong_count(self.config.data_dir or self.config.repository, rows, expected))
        return source

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        if self.config.name != "synthetic":
            self._source = self._open_source(dl_manager)
            self._removed = read_removed(self.config.removed or removed_beside(self.config.data_dir))
            self.info.features = source_features(self._source)
            numbered = iter(enumerate(self._source.shards))
            return [
                datasets.SplitGenerator(
                    name=split, gen_kwargs={"shards": list(itertools.islice(numbered, len(shards)))}
                )
                for split, shards in self._source.splits.items()
            ]
        persons = {
            datasets.Split.TRAIN: self.config.num_train_persons,
            datasets.Split.VALIDATION: self.config.num_validation_persons,
            datasets.Split.TEST: self.config.num_test_persons,
        }
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "chunks": [(str(split), start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
                },
            )
            for split, count in persons.items()
        ]

    def _generate_examples(self, **kwargs: list[tuple]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Rows of `shards` (number, file) of a source, or of `chunks` (split, first person, one past the last)."""
        return self._drawn_rows(**kwargs) if "chunks" in kwargs else self._source_rows(**kwargs)

    def _source_rows(self, shards: list[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, shard in shards:
            stem = re.sub(r"[^\w.-]", "_", os.path.basename(shard))[:80]
            with RowReport(os.path.join(self.report_dir, f"{number:05d}-{stem}")) as report:
                rows = self._source.rows(shard)
                options = self.config.row_options()
                for position, row in enumerate(
                    prepare_rows(rows, self._source.extra, options, report, None, self._removed)
                ):
                    yield f"{number}/{position}", row

    def _drawn_rows(self, chunks: list[tuple[str, int, int]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for split, start, stop in chunks:
            rows = generate_rows(
                split,
                start,
                stop,
                image_size=self.config.image_size,
                views_per_person=self.config.views_per_person,
                noise_rate=self.config.noise_rate,
                seed=self.config.seed,
                mistake_correlation=self.config.mistake_correlation,
                twins=self.config.twins,
            )
            for row in rows:
                yield row["image_path"], row


def _wrong_count(place: str | None, rows: int, expected: int) -> str:
    return (
        f"{place}: {rows:,} rows, {expected:,} are declared; get the complete copy, or pass expected_rows={rows} if "
        "these rows are intended (0 for any number)"
    )
