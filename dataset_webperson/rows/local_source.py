"""A folder of captioned images as rows: parquet shards, WebDataset tars, or images beside json lists.

| format | what lies in the folder or in its `data/` |
|---|---|
| `parquet` | `*.parquet` with an `image` column; parquets without one (metadata beside tars) are passed over |
| `webdataset` | `*.tar`: `a.jpg` with `a.json` or `a.txt` is a row; `a.mask.png` beside them is not read |
| `images` | `*.json`: lists of `{"<file>": {"caption1": .., "caption2": ..}}`; the images in `images/` or beside |

A shard whose name says so belongs to a split, by the words that `load_dataset` knows: `test-00000.parquet`,
`val_0.tar`; all others are `train`. Rows come split by split, in the order of the shards' names, one at a time: memory
does not grow with the source.
"""

import itertools
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ..findings import DataError
from ..readers.benchmark_copy import choose_base
from ..readers.json_stream import iter_list
from ..safe_paths import SafeRoot, UnsafePathError
from .image_column import as_struct, refuse_type
from .joined_parquet import whole_batches, whole_schema

FORMATS = ("parquet", "webdataset", "images")
IMAGE_FOLDERS = ("images", "", "imgs")
CAPTIONS = ("caption1", "caption2")
MAX_MEMBER_BYTES = 256 << 20  # of an image in a tar; Pillow's limit of pixels comes after
MAX_TEXT_BYTES = 16 << 20
_PLACES = ("", "data")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PEEK_ROWS = 200  # rows of the first shard that tell which further columns there are
_BATCH_ROWS = 64  # rows of a parquet in memory
_HELD_STEMS = 32  # files `a.*.jpg` that wait for an `a.jpg` before each is taken for a row of its own
# The words of `datasets.data_files`; between letters ("latest", "evaluated") they mean nothing.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SPLITS = ("train", "validation", "test")


@dataclass(slots=True)
class SourceRow:
    """A row as the source has it. The image is its bytes, or a file to read; a row with a `problem` has neither."""

    where: str
    image_path: str
    captions: list[Any]
    extra: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None
    file: str | None = None
    problem: str = ""  # a code of `findings.KINDS`
    message: str = ""

    def read(self) -> bytes:
        """The bytes of the image file. Raises `OSError`."""
        if self.file is None:
            return self.data or b""
        with open(self.file, "rb") as file:
            return file.read()


Splits = dict[str, tuple[str, ...]]  # the shards of each split


class Source:
    """Shards of rows. `extra` has the features of the columns beyond `image, image_path, caption1, caption2`."""

    format: str
    splits: Splits
    extra: dict[str, Any]

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards of all splits, split by split."""
        return tuple(itertools.chain.from_iterable(self.splits.values()))

    def rows(self, shard: str, skip: int = 0) -> Iterator[SourceRow]:
        """The rows of a shard but the first `skip`, whose images are not read.

        Raises:
            `DataError`: the shard is broken; names it.
        """
        raise NotImplementedError

    def count(self) -> int | None:
        """The number of rows where the shards declare it, else `None`."""
        return None


class ParquetSource(Source):
    """Parquet shards, local paths or addresses such as `hf://datasets/org/name/data/0.parquet`."""

    format = "parquet"

    def __init__(self, splits: Splits, root: str | None = None):
        self.splits = splits
        shards = self.shards
        self._root = root  # an image given by its path is looked for here
        with _open_parquet(shards[0]) as parquet:
            schema = whole_schema(shards[0], parquet.schema_arrow)
        if "image" not in schema.names:
            raise DataError(f"{shards[0]}: no column `image`; it has {', '.join(schema.names)}")
        refuse_type(schema.field("image").type, shards[0])
        self._captions = [name for name in CAPTIONS if name in schema.names] or ["caption"]
        if not set(self._captions) <= set(schema.names):
            raise DataError(f"{shards[0]}: no column `caption1` or `caption`; it has {', '.join(schema.names)}")
        own = {"image", "image_path", *self._captions}
        kept = pa.schema([part for part in schema if part.name not in own], metadata=schema.metadata)
        self.extra = {name: kind for name, kind in _features(schema).items() if name in kept.names}
        self._columns = [name for name in schema.names if name in own or name in self.extra]

    def count(self) -> int:
        total = 0
        for shard in self.shards:
            with _open_parquet(shard) as parquet:
                total += parquet.metadata.num_rows
        return total

    def rows(self, shard: str, skip: int = 0) -> Iterator[SourceRow]:
        safe = SafeRoot(self._root) if self._root else None
        with _open_parquet(shard) as parquet:
            schema = whole_schema(shard, parquet.schema_arrow)
            if absent := set(self._columns) - set(schema.names):
                raise DataError(f"{shard}: no column {', '.join(sorted(absent))}; {self.shards[0]} has it")
            refuse_type(schema.field("image").type, shard)
            number = 0
            groups: list[int] = []
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if not groups and number + size <= skip:
                    number += size  # a group of rows that are all left out is not read
                else:
                    groups.append(group)
            try:
                batches = whole_batches(shard, parquet, _BATCH_ROWS, self._columns, groups)
                for batch in batches if groups else ():
                    for values in batch.to_pylist():
                        if number >= skip:
                            yield self._row(shard, number, values, safe)
                        number += 1
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{shard}: broken after row {number:,} ({error}); download it again") from error

    def _row(self, shard: str, number: int, values: dict[str, Any], safe: SafeRoot | None) -> SourceRow:
        data, path = as_struct(values["image"]).values()
        stem = posixpath.basename(shard).removesuffix(".parquet")
        # The name stored with bytes is often a base name that other rows share; a path to read is unique.
        named = path if data is None and path else posixpath.join(stem, f"{number:06d}", path or "")
        row = SourceRow(
            where=f"{shard} row {number}",
            image_path=str(values.get("image_path") or named.rstrip("/")),
            captions=[values[name] for name in self._captions],
            extra={name: values[name] for name in self.extra},
            data=data,
        )
        if data is None and path and safe is not None:
            try:
                row.file = safe.resolve(path)
            except UnsafePathError as error:
                row.problem, row.message = "path-unsafe", f"{row.where}: {error}"
        elif data is None:
            row.problem, row.message = "image-missing", f"{row.where}: neither bytes nor a path of an image"
        return row


class TarSource(Source):
    """WebDataset tars. Nothing is unpacked; members that are links or leave the archive's folder are refused."""

    format = "webdataset"

    def __init__(self, splits: Splits):
        self.splits = splits
        peeked = itertools.islice(self._samples(self.shards[0]), _PEEK_ROWS)
        self.extra = infer_features([_without_captions(_metadata(sample)[0]) for sample in peeked])

    def rows(self, shard: str, skip: int = 0) -> Iterator[SourceRow]:
        for number, sample in enumerate(self._samples(shard, skip)):
            if number < skip:
                continue
            metadata, problem = _metadata(sample)
            row = SourceRow(
                where=f"{shard} member {sample['name']}",
                image_path=str(metadata.get("image_path") or sample["name"]),
                captions=_captions(metadata),
                extra=_without_captions(metadata),
                data=sample.get("image"),
            )
            if sample.get("problem") or problem:
                row.problem, row.message = sample.get("problem") or ("row-not-object", f"{row.where}: {problem}")
            elif row.data is None:
                row.problem, row.message = "image-missing", f"{row.where}: no image of this name in the tar"
            yield row

    @classmethod
    def _samples(cls, shard: str, skip: int = 0) -> Iterator[dict[str, Any]]:
        """`{"name", "image": bytes, "json": bytes, "txt": bytes, "problem"}`; of the first `skip` no image is read."""
        group = _Group("")
        number = 0
        try:
            with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
                    folder, name = posixpath.split(member.name)
                    if member.isdir() or name.startswith("."):  # what macOS packs beside each file
                        continue
                    key = posixpath.join(folder, name.partition(".")[0])
                    if group.key != key:
                        rows, group = group.rows(shard), _Group(key)
                    else:
                        rows = group.early_rows(shard)
                    for sample in rows:
                        yield sample
                        number += 1
                    stem, ending = posixpath.splitext(member.name)
                    ending = ending.lower()
                    is_image = ending in _IMAGE_ENDINGS
                    if not is_image and ending not in (".json", ".txt"):
                        group.stems.setdefault(stem, {"name": member.name})
                        continue
                    sample = group.stems.setdefault(stem, {"name": member.name})
                    if is_image:
                        sample.setdefault("images", []).append(member.name)
                        sample["name"] = member.name
                    if reason := _unsafe_member(member, is_image):
                        sample["problem"] = ("path-unsafe", f"{shard} member {member.name!r}: {reason}")
                    elif not is_image or number + len(group.stems) > skip:  # a row's number is at most this
                        part = tar.extractfile(member)
                        sample["image" if is_image else ending[1:]] = part.read() if part else b""
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends quietly in a cut header
                    raise tarfile.ReadError("no end of the archive")
                yield from group.rows(shard)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{shard}: broken after row {number:,} ({error}); download it again") from error


class _Group:
    """Members of a tar whose names agree up to the first dot, by name without ending: `a` of `a.jpg`, `a.mask`."""

    def __init__(self, key: str):
        self.key = key
        self.stems: dict[str, dict[str, Any]] = {}
        self._begun = False  # rows were given before the group's end: there is no plain one

    def early_rows(self, shard: str) -> list[dict[str, Any]]:
        """Rows that need not wait for the end of a group of many files, none of which is plain: `cam1.frame0.jpg`."""
        if self.key in self.stems or len(self.stems) <= _HELD_STEMS:
            return []
        last = next(reversed(self.stems))
        rows = [self.stems.pop(stem) for stem in list(self.stems) if stem != last]
        self._begun = True
        return [_whole(sample, shard) for sample in rows if _has_part(sample)]

    def rows(self, shard: str) -> list[dict[str, Any]]:
        """The rows of the group.

        A file `a.jpg`, `a.json` or `a.txt` is plain. Where there is one, `a.mask.png` belongs to it and is no row,
        unless it has captions of its own name; where there is none, every name is a row.
        """
        plain = self.stems.get(self.key)
        if plain is None or not _has_part(plain):
            return [_whole(sample, shard) for sample in self.stems.values() if _has_part(sample)]
        if self._begun:
            raise DataError(
                f"{shard} member {plain['name']}: it comes after other files {self.key}.*, each of which is a row; "
                "rename either"
            )
        others = [self.stems[stem] for stem in self.stems if stem != self.key]
        own = [sample for sample in others if "images" in sample and _captions(_metadata(sample)[0])]
        if "images" not in plain and (left := [name for sample in others for name in sample.get("images", ())]):
            text = f"{shard} member {plain['name']}: no image of this name in the tar, only {', '.join(left[:3])}"
            plain["problem"] = ("image-missing", f"{text}; give picture and text one name")
        return [_whole(sample, shard) for sample in (plain, *own)]


def _has_part(sample: dict[str, Any]) -> bool:
    return any(part in sample for part in ("images", "json", "txt", "problem"))


def _whole(sample: dict[str, Any], shard: str) -> dict[str, Any]:
    """The sample, with a problem where it has several images."""
    if len(images := sample.get("images", [])) > 1 and "problem" not in sample:
        text = f"{shard}: {' and '.join(images)} are images of one row; keep one"
        sample["problem"] = ("image-several", text)
    return sample


class ImageFolderSource(Source):
    """Json lists, a shard each, and a folder of images."""

    format = "images"

    def __init__(self, splits: Splits, root: str):
        self.splits = splits
        shards = self.shards
        self._safe = SafeRoot(root)
        peeked = list(itertools.islice(self._entries(shards[0]), _PEEK_ROWS))
        names = [name for _, name, values in peeked if isinstance(values, dict)]
        if not names:
            raise DataError(
                f'{shards[0]}: no entry of the form {{"<file name>": {{"caption1": .., "caption2": ..}}}}. '
                "Is it the list of WebPerson?"
            )
        self._base, _ = choose_base(IMAGE_FOLDERS, self._safe, names)
        self.extra = infer_features([_without_captions(values) for _, _, values in peeked if isinstance(values, dict)])

    def rows(self, shard: str, skip: int = 0) -> Iterator[SourceRow]:
        for where, name, values in itertools.islice(self._entries(shard), skip, None):
            if not isinstance(values, dict):
                text = f'{where}: {str(values)[:60]}; {{"<file name>": {{"caption1": ..}}}} belongs there'
                yield SourceRow(where, name, [], problem="row-not-object", message=text)
                continue
            row = SourceRow(where, name, _captions(values), _without_captions(values))
            try:
                row.file = self._safe.resolve(name, self._base)
            except UnsafePathError as error:
                row.problem, row.message = "path-unsafe", f"{where}: {error}"
            yield row

    @staticmethod
    def _entries(shard: str) -> Iterator[tuple[str, str, Any]]:
        for number, entry in enumerate(iter_list(shard)):
            where = f"{shard} entry {number}"
            if not isinstance(entry, dict) or not entry:
                yield where, "", entry
                continue
            for name, values in entry.items():
                yield where, name, values


def open_source(root: str | os.PathLike, source_format: str | None = None) -> Source:
    """The rows of a folder, whose format is recognised by its files.

    Args:
        root: the folder.
        source_format: `"parquet"`, `"webdataset"` or `"images"`, for a folder that holds more than one.

    Raises:
        `DataError`: no such folder, nothing readable in it, or files of more than one format.
    """
    if source_format is not None and source_format not in FORMATS:
        raise DataError(f"source_format is one of {', '.join(FORMATS)}, not {source_format!r}")
    safe = SafeRoot(root)
    found = {name: files for name, files in _find(safe).items() if files}
    if source_format is not None:
        found = {name: files for name, files in found.items() if name == source_format}
    if not found:
        raise DataError(
            f"{safe.root}: no {source_format or 'WebPerson'} in it or in its data/, looked for *.parquet with a "
            "column `image`, *.tar, and *.json that hold a list (not a dict); pass the folder that holds the shards"
        )
    if len(found) > 1:
        held = ", ".join(f"{len(files)} of {name} ({os.path.basename(files[0])}, ..)" for name, files in found.items())
        raise DataError(f"{safe.root}: ambiguous, it holds {held}; choose one with source_format=")
    ((name, files),) = found.items()
    splits = by_split(files)
    if name == "parquet":
        return ParquetSource(splits, safe.root)
    return TarSource(splits) if name == "webdataset" else ImageFolderSource(splits, safe.root)


def by_split(files: Iterable[str]) -> Splits:
    """Files by the split that their names say, in the order train, validation, test; without a word, `train`.

    Raises:
        `DataError`: a name says two splits.
    """
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for file in files:
        words = re.split(r"[^a-z]+", os.path.splitext(os.path.basename(file))[0].lower())
        said = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS} or {"train"}
        if len(said) > 1:
            raise DataError(f"{file}: the name says {' and '.join(sorted(said))}; rename it after the split it holds")
        splits[said.pop()].append(file)
    return {name: tuple(held) for name, held in splits.items() if held}


def _find(safe: SafeRoot) -> dict[str, tuple[str, ...]]:
    """The files of each format. Links that leave the folder raise."""
    by_ending: dict[str, list[str]] = {".parquet": [], ".tar": [], ".json": []}
    for place in _PLACES:
        folder = os.path.join(safe.root, place)
        if not os.path.isdir(folder):
            continue
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(tuple(by_ending)))
        for name in names:
            file = safe.resolve(posixpath.join(place, name))
            if os.path.isfile(file):
                by_ending[os.path.splitext(name)[1]].append(file)
    parquets = [file for file in by_ending[".parquet"] if _has_images(file)]
    lists = [file for file in by_ending[".json"] if _starts_with_list(file)]
    # img2dataset writes `00000_stats.json` and `00000.parquet` (no images) beside `00000.tar`: neither is a source.
    return {"parquet": tuple(parquets), "webdataset": tuple(by_ending[".tar"]), "images": tuple(lists)}


def _open_parquet(shard: str) -> pq.ParquetFile:
    try:
        if os.path.exists(shard):
            return pq.ParquetFile(shard)
        return pq.ParquetFile(fsspec.open(shard, "rb").open(), pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard}: not a whole parquet file ({error}); download it again") from error


def _has_images(file: str) -> bool:
    with _open_parquet(file) as parquet:
        return "image" in whole_schema(file, parquet.schema_arrow).names


def _starts_with_list(file: str) -> bool:
    with open(file, "rb") as start:
        return start.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{"  # the reader reports anything else


def _features(schema: pa.Schema) -> Features:
    """The features a parquet declares, or those of its types."""
    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # written by a `datasets` with other feature types
        return Features.from_arrow_schema(schema.remove_metadata())


def _unsafe_member(member: tarfile.TarInfo, is_image: bool) -> str:
    """Why a member of a tar is refused, or ""."""
    if not member.isreg():
        return "a link or a device, not a file"
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name:
        return "a path that leaves the folder"
    limit = MAX_MEMBER_BYTES if is_image else MAX_TEXT_BYTES
    return f"{member.size:,} bytes, over the limit of {limit:,}" if member.size > limit else ""


def _metadata(sample: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the json or the text of a sample says, and what is wrong with it."""
    try:
        metadata = json.loads(sample["json"]) if "json" in sample else {}
        if not isinstance(metadata, dict):
            return {}, f"its json holds a {type(metadata).__name__}, an object belongs there"
        if "txt" in sample and not _captions(metadata):
            metadata["caption"] = sample["txt"].decode("utf-8")
        return metadata, ""
    except (ValueError, RecursionError) as error:
        return {}, f"its json or text cannot be read ({error})"


def _captions(values: dict[str, Any]) -> list[Any]:
    named = [values[name] for name in CAPTIONS if name in values]
    return named or [values[name] for name in ("caption",) if values.get(name) is not None]


def _without_captions(values: dict[str, Any]) -> dict[str, Any]:
    own = {"image", "image_path", "caption", *CAPTIONS}
    return {name: value for name, value in values.items() if name not in own}


def infer_features(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Features of the further columns, in the order they come: whole numbers, numbers, truth values, else text.

    Lists and objects become json text, so that columns have one type however their rows differ.
    """
    seen: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, set()).update([type(value)] if value is not None else [])
    kinds = {frozenset([int]): "int64", frozenset([bool]): "bool"}
    kinds |= dict.fromkeys((frozenset([float]), frozenset([int, float])), "float64")
    return {name: Value(kinds.get(frozenset(types), "string")) for name, types in seen.items()}


def fit(value: Any, feature: Any) -> Any:
    """A further column's value in the column's type, `None` where it has another type.

    Raises:
        `ValueError`: the value cannot be brought into the type.
    """
    if value is None or not isinstance(feature, Value):
        return value
    if feature.dtype == "string":
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text.encode()  # raises on half of a surrogate pair
        return text
    if feature.dtype == "bool" and not isinstance(value, bool):
        raise ValueError(f"{value!r} is not a truth value")
    if feature.dtype.startswith(("int", "uint")) and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{value!r} is not a whole number")
    if feature.dtype == "int64" and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value!r} has more than 64 bits")
    if feature.dtype.startswith("float") and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{value!r} is not a number")
    return value


def source_features(source: Source) -> Features:
    """`image, image_path, caption1, caption2` and the source's further columns."""
    text = Value("string")
    return Features({"image": Image(), "image_path": text, "caption1": text, "caption2": text, **source.extra})
