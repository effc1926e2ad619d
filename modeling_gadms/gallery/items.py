"""Images on their way into a gallery: where each comes from, its name, its id and its metadata."""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from PIL import Image

from dataset_webperson import DataError
from dataset_webperson.images import to_rgb
from dataset_webperson.rows.local_source import TarSource

from .columns import KEYS, column_name, infer_kinds, read_table

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
Source: TypeAlias = str | os.PathLike | Sequence[Any] | datasets.Dataset
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(slots=True)
class Item:
    """An image that has not been read: a file, or the bytes of one."""

    id: str
    source: str
    uri: str
    metadata: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    size: int = 0
    time: int = 0  # nanoseconds
    data: bytes | None = None
    problem: str = ""  # why there is nothing to read

    def read(self) -> bytes:
        """The bytes of the image file. Raises `OSError`."""
        if self.file is None:
            return self.data or b""
        with open(self.file, "rb") as file:
            return file.read()


@dataclass
class Items:
    """The images of a source, one after the other.

    Attributes:
        kinds: of the metadata columns.
        make: begins a new walk over the items.
        total: their number where it is known.
        folder: of files that `sync` can compare.
    """

    kinds: dict[str, str]
    make: Callable[[], Iterator[Item]]
    total: int | None = None
    folder: str | None = None


def row_id(source: str, uri: str) -> str:
    """32 hexadecimal digits: 128 bits of sha256, so that two of fifty million rows agree once in 10**23 galleries."""
    return hashlib.sha256(f"{source}\0{uri}".encode(errors="surrogatepass")).hexdigest()[:32]


def open_items(source: Source, metadata: Any = None) -> Items:
    """The images of a folder with all its sub-folders, a list, a data set, parquet files, tars, or a Hub id.

    Args:
        source: a folder of images or of `*.tar` or `*.parquet` shards, such a file, a Hub id, a `datasets.Dataset`
            with an image column, or a list of paths and PIL images.
        metadata: for a list, a list of dictionaries; else a csv, jsonl or parquet file with a column `uri`, or a
            dictionary `{uri: {column: value}}`.

    Raises:
        DataError: there is nothing of the kind, or the metadata names images that are not there.
    """
    if isinstance(source, datasets.DatasetDict):
        source = datasets.concatenate_datasets(list(source.values()))
    if isinstance(source, datasets.Dataset):
        return _of_dataset(source, "", _by_uri(metadata))
    if isinstance(source, str | os.PathLike):
        return _of_path(os.fspath(source), _by_uri(metadata))
    return _of_list(list(source), metadata)


def _by_uri(metadata: Any) -> dict[str, dict[str, Any]]:
    if metadata is None:
        return {}
    if isinstance(metadata, str | os.PathLike):
        metadata = read_table(metadata)
    if not isinstance(metadata, Mapping):
        raise DataError("metadata of a folder or a data set is a file or a dictionary by uri; a list goes with a list")
    return {uri: _named(row) for uri, row in metadata.items()}


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    named = {column_name(name): value for name, value in row.items()}
    if len(named) < len(row):
        raise DataError(f"metadata columns {sorted(row)}: two have the same name {sorted(named)}; rename one")
    return named


def _of_path(path: str, metadata: dict[str, dict[str, Any]]) -> Items:
    if os.path.isfile(path):
        return _of_shards([path], path, metadata)
    if os.path.isdir(path):
        shards = sorted(str(file) for ending in ("*.tar", "*.parquet") for file in Path(path).glob(ending))
        shards = shards or sorted(
            str(file) for ending in ("*.tar", "*.parquet") for file in Path(path).glob(f"data/{ending}")
        )
        if shards and next(_walk(path, path, {}), None) is None:
            return _of_shards(shards, path, metadata)
        return _of_folder(os.path.realpath(path), path, metadata)
    if _HUB_ID.fullmatch(path) and not path.startswith("."):
        try:
            splits = datasets.load_dataset(path)
        except Exception as error:  # whatever the network, the Hub and the files in it raise
            raise DataError(
                f"{path}: no such folder, and no data set on the Hub ({' '.join(str(error).split()):.200}); check "
                "the name"
            ) from error
        return _of_dataset(datasets.concatenate_datasets(list(splits.values())), path, metadata)
    raise DataError(f"{path}: no such file or folder; give a folder of images, shards, or a Hub id")


def _of_folder(folder: str, shown: str, metadata: dict[str, dict[str, Any]]) -> Items:
    if metadata:
        absent = sum(not os.path.isfile(os.path.join(folder, uri)) for uri in metadata)
        if absent == len(metadata):
            raise DataError(f"{shown}: none of the {absent} images that the metadata names; names are relative to it")
    return Items(infer_kinds(metadata.values()), lambda: _walk(folder, folder, metadata), folder=folder)


def _walk(root: str, folder: str, metadata: dict[str, dict[str, Any]]) -> Iterator[Item]:
    """Image files in the order of their names; hidden files and folders, and links out of the folder, are left out."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, entry.path, metadata)
        elif entry.name.lower().endswith(ENDINGS):
            if entry.is_symlink() and not os.path.realpath(entry.path).startswith(root.rstrip(os.sep) + os.sep):
                continue
            uri = os.path.relpath(entry.path, root).replace(os.sep, "/")
            item = Item(row_id(root, uri), root, uri, metadata.get(uri, {}), entry.path)
            try:
                state = entry.stat()
                item.size, item.time = state.st_size, state.st_mtime_ns
            except OSError as error:  # a link to nothing
                item.problem = f"{uri}: {error.strerror}; replace the file"
            yield item


def _of_shards(shards: list[str], path: str, metadata: dict[str, dict[str, Any]]) -> Items:
    ending = os.path.splitext(shards[0])[1].lower()
    shards = [shard for shard in shards if shard.lower().endswith(ending)]
    source = os.path.realpath(path)
    if ending == ".parquet":
        try:
            rows = datasets.load_dataset("parquet", data_files=shards, split="train")
        except Exception as error:  # the reader raises types of its own
            raise DataError(
                f"{path}: not whole parquet files ({error.__cause__ or error}); copy them again"
            ) from error
        return _of_dataset(rows, source, metadata)
    if ending == ".tar":
        return _of_tars(TarSource({"train": tuple(shards)}), source, metadata)
    raise DataError(f"{path}: images come from a folder, or from .parquet or .tar files; give one of these")


def _of_tars(tars: TarSource, source: str, metadata: dict[str, dict[str, Any]]) -> Items:
    kinds = {column_name(name): _feature_kind(feature) for name, feature in tars.extra.items()}

    def items() -> Iterator[Item]:
        for shard in tars.shards:
            for row in tars.rows(shard):
                uri = row.image_path if len(tars.shards) == 1 else f"{os.path.basename(shard)}/{row.image_path}"
                values = {**_named(row.extra), **metadata.get(uri, {})}
                yield Item(row_id(source, uri), source, uri, values, data=row.data, problem=row.message)

    known = {name: kind for name, kind in kinds.items() if kind}
    return Items({**known, **infer_kinds(metadata.values())}, items)


def _of_dataset(rows: datasets.Dataset, source: str, metadata: dict[str, dict[str, Any]]) -> Items:
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if "image" in rows.features:
        images = ["image"]
    if len(images) != 1:
        held = f"{source or 'the data set'}: {len(images)} image columns among {rows.column_names}"
        raise DataError(f"{held}; give one, or one named image")
    (image,) = images
    rows = rows.cast_column(image, datasets.Image(decode=False))
    key = next((name for name in KEYS if name in rows.column_names), None)
    kinds = {name: _feature_kind(feature) for name, feature in rows.features.items() if name not in (image, key)}
    columns = {name: column_name(name) for name, kind in kinds.items() if kind}
    if len(set(columns.values())) < len(columns):
        raise DataError(f"the data set's columns {sorted(columns)}: two have the same name; rename one")
    rows = rows.select_columns([image, *([key] if key else []), *columns])

    def items() -> Iterator[Item]:
        seen: dict[str, int] = {}
        for row in rows:
            file, data = row[image] and row[image]["path"], row[image] and row[image]["bytes"]
            problem = "" if row[image] else "the row has no image; leave it out"
            on_disk = data is None and file is not None
            if key:
                uri = str(row[key])
                number = row_id(source, uri)
            elif on_disk:
                uri = str(file)
                number = row_id(source, uri)
            else:
                uri, number = _by_content(data or b"", seen)
            values = {**{new: row[old] for old, new in columns.items()}, **metadata.get(uri, {})}
            item = Item(number, source, uri, values, data=data, problem=problem)
            if on_disk:
                item.file = str(file)
                if os.path.exists(item.file):
                    item.size, item.time = os.path.getsize(item.file), os.stat(item.file).st_mtime_ns
            yield item

    known = {columns[name]: str(kind) for name, kind in kinds.items() if kind}
    return Items({**known, **infer_kinds(metadata.values())}, items, len(rows))


def _feature_kind(feature: Any) -> str | None:
    """The kind of a column of a data set; `None` for what a filter cannot compare."""
    if isinstance(feature, datasets.ClassLabel):
        return "number"
    if not isinstance(feature, datasets.Value):
        return None
    kind = feature.dtype
    if kind == "bool":
        return "bool"
    if kind in ("string", "large_string"):
        return "text"
    if kind.startswith(("int", "uint", "float", "decimal")):
        return "number"
    return "time" if kind.startswith(("timestamp", "date")) else None


def _of_list(images: list[Any], metadata: Any) -> Items:
    rows = [{} for _ in images] if metadata is None else [_named(row) for row in metadata]
    if len(rows) != len(images):
        raise DataError(f"{len(rows)} rows of metadata for {len(images)} images; give one for each")

    def items() -> Iterator[Item]:
        seen: dict[str, int] = {}
        for image, row in zip(images, rows, strict=True):
            if isinstance(image, Image.Image):
                buffer = io.BytesIO()
                to_rgb(image).save(buffer, "PNG", compress_level=1)
                uri, number = _by_content(buffer.getvalue(), seen)
                yield Item(number, "", uri, row, data=buffer.getvalue())
                continue
            if not isinstance(image, str | os.PathLike):
                raise DataError(f"{image!r:.80} is neither a path nor a PIL image; give one of these")
            uri = os.path.abspath(image)
            item = Item(row_id("", uri), "", uri, row, uri)
            try:
                state = os.stat(uri)
                item.size, item.time = state.st_size, state.st_mtime_ns
            except OSError as error:
                item.problem = f"{uri}: {error.strerror}; check the path"
            yield item

    return Items(infer_kinds(rows), items, len(images))


def _by_content(data: bytes, seen: dict[str, int]) -> tuple[str, str]:
    """Name and id of an image without a name: its content, and how many of the same came before it."""
    digest = hashlib.sha256(data).hexdigest()
    count = seen[digest] = seen.get(digest, -1) + 1
    return f"{digest[:16]}-{count}", row_id("sha256", f"{digest} {count}")
