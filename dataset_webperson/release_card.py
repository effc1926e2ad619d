"""The card of a release, every sentence of it filled from the release's own files, counts and settings."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, LargeList, List, Value
from huggingface_hub import DatasetCardData

from .files import file_size
from .release_shards import tells_of_captions
from .rows.preparation import describe_summary

DATA, CAPTIONS = "data", "captions"  # folders of the rows with their images, and of the captions alone
_SHOWN_VALUES = 6  # a text column with at most so many different values has them named on the card
_MOST_VALUES = 1_000_000  # different values remembered of a column; beyond it the card says "over"
# A caption without any of these is not English, or hardly a sentence.
_ENGLISH = re.compile(r"\b(?:a|an|and|the|with|in|is|of|wearing|wears)\b", re.IGNORECASE)
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_SOURCES = {
    "parquet": "parquet files",
    "webdataset": "WebDataset tars",
    "images": "image files and json lists",
}
_NOT_SAID = (
    "The publisher has not said where the images come from, nor who or what wrote the captions. Ask the contact below "
    "before you rely on either."
)


@dataclass(frozen=True)
class Made:
    """What the command that made the rows says of them, for the card.

    Args:
        text: Markdown of how they were made, from its configuration and counts.
        command: its name.
        not_in_it: sentences on what was not done.
    """

    text: str = ""
    command: str = "python -m dataset_webperson.release"
    not_in_it: tuple[str, ...] = (
        "Faces were not blurred, and no near-duplicates or images of benchmarks searched for, by this release.",
    )


@dataclass(frozen=True)
class SplitFacts:
    """The files of one split, of the same names in both folders, and their sizes by folder."""

    names: tuple[str, ...]
    rows: int
    file_bytes: dict[str, int]
    table_bytes: dict[str, int]  # uncompressed

    @classmethod
    def of(cls, main: str, names: list[str], rows: int) -> "SplitFacts":
        file_bytes, table_bytes = {}, {}
        for folder in (DATA, CAPTIONS):
            paths = [os.path.join(main, folder, name) for name in names]
            footers = [pq.read_metadata(path) for path in paths]
            groups = [footer.row_group(group) for footer in footers for group in range(footer.num_row_groups)]
            file_bytes[folder] = sum(map(os.path.getsize, paths))
            table_bytes[folder] = sum(group.total_byte_size for group in groups)
        return cls(tuple(names), rows, file_bytes, table_bytes)

    def files(self, folder: str) -> list[str]:
        """Its files in one of the folders, relative to the release."""
        return [f"{folder}/{name}" for name in self.names]


@dataclass
class ColumnFacts:
    """What the values of one column are."""

    nulls: int = 0
    least: Any = None
    greatest: Any = None
    values: Counter[Any] = field(default_factory=Counter)  # of text and truth values
    overflow: bool = False
    is_list: bool = False  # whose lengths are counted, not what is in them

    def add(self, values: Iterable[Any]) -> None:
        for value in values:
            if value is None:
                self.nulls += 1
                continue
            if isinstance(value, list):
                self.is_list, value = True, len(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
                self.least = value if self.least is None else min(self.least, value)
                self.greatest = value if self.greatest is None else max(self.greatest, value)
            if isinstance(value, (str, bool)):
                if value in self.values or len(self.values) < _MOST_VALUES:
                    self.values[value] += 1
                else:
                    self.overflow = True

    @property
    def different(self) -> str:
        return f"over {_MOST_VALUES:,}" if self.overflow else f"{len(self.values):,}"

    def describe(self) -> str:
        """Values, their range, and how many are missing, in one table cell."""
        parts = []
        if self.values and not self.overflow and len(self.values) <= _SHOWN_VALUES:
            shown = (f"`{_cell(str(value))}` {count:,}" for value, count in self.values.most_common())
            parts.append(", ".join(shown))
        elif self.least is not None:
            least, greatest = (f"{v:,}" if isinstance(v, int) else f"{v:,.4g}" for v in (self.least, self.greatest))
            parts.append(least if least == greatest else f"{least} to {greatest}")
            if self.is_list:
                parts[-1] += " in a row"
        elif self.values:
            parts.append(f"{self.different} different texts")
        if self.nulls:
            parts.append(f"none in {_number(self.nulls, 'row')}")
        return "; ".join(parts)


@dataclass
class Facts:
    """What is in the rows of a release, read from its files."""

    columns: dict[str, ColumnFacts]
    persons: dict[str, set[Any]]  # ids in each split
    captions: int = 0  # different within their row
    single: int = 0  # rows with one caption in both columns
    words: int = 0
    english: int = 0

    @classmethod
    def read(cls, main: str, splits: dict[str, SplitFacts], features: Features) -> "Facts":
        own = ("image", "image_path", "caption1", "caption2", "image_sha256")
        names = [name for name in features if name not in own]
        facts = cls({name: ColumnFacts() for name in names}, {split: set() for split in splits})
        for split, held in splits.items():
            for path in held.files(DATA):
                with pq.ParquetFile(os.path.join(main, path)) as parquet:
                    for batch in parquet.iter_batches(columns=["caption1", "caption2", *names]):
                        rows = batch.to_pydict()
                        for name in names:
                            facts.columns[name].add(rows[name])
                        if "person_id" in rows:
                            facts.persons[split].update(value for value in rows["person_id"] if value is not None)
                        for pair in zip(rows["caption1"], rows["caption2"], strict=True):
                            facts.single += pair[0] == pair[1]
                            for caption in dict.fromkeys(pair):
                                facts.captions += 1
                                facts.words += len(caption.split())
                                facts.english += _ENGLISH.search(caption) is not None
        return facts


def size_category(rows: int) -> str:
    """How the Hub names a number of rows."""
    return next((name for bound, name in _SIZES if rows < bound), "n>1T")


def card_texts(
    main: str,
    splits: dict[str, SplitFacts],
    features: Features,
    summary: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, str]:
    """The text of every `$name` of the templates.

    Args:
        main: folder of the release.
        splits: its files.
        features: of its columns.
        summary: what happened to the rows, `RowReport.summary`.
        about: `name`, `repository`, `licence`, `contact`, `provenance` ("" where it is unknown), `format` of the
            source, the options `clean_captions`, `min_side`, `cache_size`, `row_group_rows`, and `made` (`Made`).
    """
    facts = Facts.read(main, splits, features)
    rows = sum(split.rows for split in splits.values())
    return {
        "head": _head(splits, rows, features, facts, about),
        "name": about["name"],
        "repository": about["repository"],
        "licence": _licence(about["licence"]),
        "contact": about["contact"],
        "provenance": _provenance(about["made"], about["provenance"]),
        "command": about["made"].command,
        "counted": _counted(splits, rows, facts),
        "first_split": next(iter(splits)),
        "splits": _split_sentence(splits),
        "cache": _cache(about["cache_size"]),
        "columns": _column_table(features, facts, about["cache_size"] is not None),
        "captions": _captions(facts),
        "source": _SOURCES[about["format"]],
        "changes": _changes(summary, about, rows),
        "contents": _contents(splits, rows, facts, about["made"]),
        "files_in_words": _files_in_words(splits, about["row_group_rows"]),
        "sha256": _digest(main, splits),
    }


def _head(splits: dict[str, SplitFacts], rows: int, features: Features, facts: Facts, about: dict[str, Any]) -> str:
    in_data, in_captions = (
        [{"split": split, "path": f"{folder}/{split}-*"} for split in splits] for folder in (DATA, CAPTIONS)
    )
    of_images = [name for name in features if not tells_of_captions(name)]
    data = DatasetCardData(
        pretty_name=about["name"],
        license=about["licence"],
        language=["en"] if facts.english >= 0.9 * facts.captions else None,
        task_categories=["image-feature-extraction"],
        size_categories=[size_category(rows)],
        tags=["text-to-person-retrieval", "image-text-pairs"],
        configs=[
            {"config_name": "default", "data_files": in_data, "default": True},
            # The same files: parquet reads the columns that it is asked for.
            {"config_name": "images", "data_files": in_data, "columns": of_images},
            {"config_name": "captions", "data_files": in_captions},
        ],
        dataset_info=[_info("default", splits, DATA), _info("captions", splits, CAPTIONS)],
    )
    return data.to_yaml()


def _info(config: str, splits: dict[str, SplitFacts], folder: str) -> dict[str, Any]:
    sizes = [
        {"name": name, "num_bytes": held.table_bytes[folder], "num_examples": held.rows}
        for name, held in splits.items()
    ]
    return {
        "config_name": config,
        "splits": sizes,
        "download_size": sum(held.file_bytes[folder] for held in splits.values()),
        "dataset_size": sum(held.table_bytes[folder] for held in splits.values()),
    }


def _provenance(made: Made, told: str) -> str:
    if made.text and told:
        return f"{made.text}\n\nThe publisher adds:\n\n{told}"
    return made.text or told or _NOT_SAID


def _licence(licence: str) -> str:
    if licence == "unknown":
        return "The publisher has named no licence."
    return f"The publisher gives `{_cell(licence)}` as the licence."


def _cell(text: str) -> str:
    """Text for a code span within a table: on one line, without what ends either."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'")[:60]


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _counted(splits: dict[str, SplitFacts], rows: int, facts: Facts) -> str:
    text = f"{_number(rows, 'image')} with {_number(facts.captions, 'caption')}"
    if persons := set().union(*facts.persons.values()):
        text += f" of {_number(len(persons), 'person')}, by the column `person_id`"
    return text


def _split_sentence(splits: dict[str, SplitFacts]) -> str:
    parts = [f"`{split}` ({_number(held.rows, 'row')})" for split, held in splits.items()]
    return f"One split, {parts[0]}." if len(parts) == 1 else f"Splits: {', '.join(parts)}."


def _cache(size: tuple[int, int] | None) -> str:
    """What the card says of a training cache, with the empty line before it."""
    if size is None:
        return ""
    height, width = size
    return (
        f"\n\nThis is a cache to train from: every image has {height} x {width} pixels, height by width, whatever its "
        "shape was before. `image_sha256` names an image at its own size, as the data set that this was made of "
        "does, so captions of that data set and lists of removed images hold for this one as well."
    )


def _column_table(features: Features, facts: Facts, is_cache: bool) -> str:
    one = "; where an image has only one usable caption, it stands in both columns" if facts.single else ""
    meaning = {
        "image": "upright RGB or grey JPEG, decoded when it is looked at",
        "image_path": "name of the image in the source",
        "caption1": f"first caption{one}",
        "caption2": "second caption",
        "image_sha256": "SHA-256 of the image's bytes" + (" before any resizing" if is_cache else ""),
    }
    lines = ["| column | type | values |", "|---|---|---|"]
    for name, feature in features.items():
        lines.append(f"| `{_cell(name)}` | {_kind(feature)} | {meaning.get(name) or facts.columns[name].describe()} |")
    return "\n".join(lines)


def _kind(feature: Any) -> str:
    """The type of a column, in words."""
    if isinstance(feature, List | LargeList):
        return f"list of {_kind(feature.feature)}"
    if isinstance(feature, dict):
        return f"({', '.join(f'{_cell(name)}: {_kind(inner)}' for name, inner in feature.items())})"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _captions(facts: Facts) -> str:
    text = f"Captions have {facts.words / max(facts.captions, 1):.1f} words on average."
    if facts.single:
        text += f" {_number(facts.single, 'image')} {'has' if facts.single == 1 else 'have'} a single caption."
    return text


def _changes(summary: dict[str, Any], about: dict[str, Any], rows: int) -> str:
    """What was done to this release's rows; what was possible and not done is not named."""
    converted, resized = (summary["rows"].get(name, 0) for name in ("converted", "resized"))
    told = {**summary, "rows": {**summary["rows"], "converted": 0, "resized": 0}}
    lines = [f"{line[0].upper()}{line[1:]}." for line in describe_summary(told, "with the publisher")]
    if about["clean_captions"] and not summary.get("caption_repairs"):
        lines.append("No caption was changed.")
    elif not about["clean_captions"]:
        lines.append("Captions were not repaired.")
    if not summary.get("left_out"):
        lines.append("No row was left out.")
    if converted:
        lines.append(f"{_number(converted, 'image')} re-encoded as JPEG at quality 95.")
    if resized:
        as_jpeg = "written as JPEG of quality 95 without chroma subsampling"
        lines.append(f"{_number(resized, 'image')} resized (bicubic) and {as_jpeg}.")
    if rows in (converted, resized):
        lines.append("EXIF, XMP, IPTC and comments were removed.")
    else:
        untouched = "All other images keep" if converted or resized else "All images keep"
        lines.append(f"{untouched} their compressed pixels; EXIF, XMP, IPTC and comments were removed.")
    return "\n".join(f"- {line}" for line in lines)


def _contents(splits: dict[str, SplitFacts], rows: int, facts: Facts, made: Made) -> str:
    lines = []
    if "url" not in facts.columns:
        lines.append("No column holds web addresses.")
    else:
        lines.append(
            f"`url` holds the web address of {rows - facts.columns['url'].nulls:,} of {_number(rows, 'image')}."
        )
    if "person_id" not in facts.columns:
        lines.append("No column names the person: two images may show the same one.")
    elif facts.columns["person_id"].nulls:
        lines.append(f"`person_id` is missing in {_number(facts.columns['person_id'].nulls, 'row')}.")
    names = list(splits)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    for one, other in pairs if "person_id" in facts.columns else ():
        shared = len(facts.persons[one] & facts.persons[other])
        lines.append(f"`{one}` and `{other}` share {_number(shared, 'person') if shared else 'no person'}.")
    if missing := [split for split in ("validation", "test") if split not in splits]:
        lines.append(f"There is no split {' and no split '.join(f'`{split}`' for split in missing)}.")
    lines += [sentence for sentence in made.not_in_it if sentence]
    return "\n".join(f"- {line}" for line in lines)


def _files_in_words(splits: dict[str, SplitFacts], row_group_rows: int) -> str:
    data, captions = (sum(held.file_bytes[folder] for held in splits.values()) for folder in (DATA, CAPTIONS))
    count = sum(len(held.names) for held in splits.values())
    return (
        f"{_number(count, 'Parquet file')}, {file_size(data)} in all, in row groups of about "
        f"{_number(row_group_rows, 'row')}; images are not compressed again. The captions stand once more in "
        f"`{CAPTIONS}`, {file_size(captions)}, {captions / data:.1%} of it."
    )


def _digest(main: str, splits: dict[str, SplitFacts]) -> str:
    digest = hashlib.sha256()
    for folder in (DATA, CAPTIONS):
        for held in splits.values():
            for name in held.files(folder):
                with open(os.path.join(main, name), "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
