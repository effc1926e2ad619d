"""Parquet whose images lie in another file, so that the stages of a construction need not copy them.

Such a file names the other, relative to its own folder, in its metadata, and has no column `image`. Its rows are some
of the other's, in the same order, and both have `image_path`, of which each row has another.
"""

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..findings import DataError

_KEY = b"images_in"


def images_in(path: str, schema: pa.Schema) -> str | None:
    """The file that holds the images of the parquet `path`, if they are not in it."""
    named = (schema.metadata or {}).get(_KEY)
    return None if named is None else os.path.normpath(os.path.join(os.path.dirname(path), named.decode()))


def without_images(source: str, target: str) -> pa.Schema:
    """The schema of a parquet `target` with rows of `source` but not their images, which stay where they are."""
    schema = pq.read_schema(source)
    held = images_in(source, schema) or source
    schema = pa.schema([field for field in schema if field.name != "image"])
    named = os.path.relpath(os.path.abspath(held), os.path.dirname(os.path.abspath(target)))
    return schema.with_metadata({_KEY: named.replace(os.sep, "/")})


def whole_schema(path: str, schema: pa.Schema) -> pa.Schema:
    """The schema of the rows that `whole_batches` yields."""
    if (held := images_in(path, schema)) is None:
        return schema
    return pa.schema([_image_field(path, held), *schema], schema.metadata)


def whole_batches(
    path: str,
    parquet: pq.ParquetFile,
    size: int,
    columns: list[str] | None = None,
    row_groups: list[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet with their images, from wherever these lie.

    Args:
        path: of the parquet.
        parquet: opened.
        size: rows of a batch.
        columns: of the batches; without `image` among them, no other file is opened.
        row_groups: of the parquet; all by default.

    Raises:
        `DataError`: the images are gone.
    """
    options = {"use_threads": False, "row_groups": row_groups}
    held = images_in(path, parquet.schema_arrow)
    if held is None or (columns is not None and "image" not in columns):
        yield from parquet.iter_batches(size, columns=columns, **options)
        return
    own = [name for name in columns or parquet.schema_arrow.names if name != "image"]
    field = _image_field(path, held)
    with pq.ParquetFile(held) as images:
        cursor = _Cursor(images, size)
        for batch in parquet.iter_batches(size, columns=list({*own, "image_path"}), **options):
            found = cursor.take(batch["image_path"])
            if found is None:
                raise DataError(f"{held}: lacks images of {path}; bring it back, or run the build again")
            yield pa.RecordBatch.from_arrays(
                [found, *(batch[name] for name in own)],
                schema=pa.schema([field, *(batch.schema.field(name) for name in own)]),
            )


def _image_field(path: str, held: str) -> pa.Field:
    if not os.path.exists(held):
        raise DataError(f"{held}: is gone, and {path} has its images there; bring it back, or run the build again")
    return pq.read_schema(held).field("image")


class _Cursor:
    """Images by the names of their rows, which come in the order of the file."""

    def __init__(self, images: pq.ParquetFile, size: int):
        self._images, self._size = images, size
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._ahead: pa.RecordBatch | None = None

    def _start(self, name: pa.StringScalar) -> None:
        """Begin with the row group in which the first row is, so that none before it is read."""
        place = pc.index(self._images.read(["image_path"], use_threads=False)["image_path"], name).as_py()
        groups = list(range(self._images.num_row_groups))
        while groups and place >= (rows := self._images.metadata.row_group(groups[0]).num_rows):
            place -= rows
            groups.pop(0)
        columns = ["image_path", "image"]
        self._batches = self._images.iter_batches(self._size, row_groups=groups, columns=columns, use_threads=False)
        self._ahead = next(self._batches, None)

    def take(self, names: pa.StringArray) -> pa.StructArray | None:
        """The images of these rows, `None` if some are not there."""
        if self._batches is None:
            self._start(names[0])
        parts, left = [], names
        while len(left):
            if self._ahead is None or self._batches is None:
                return None
            places = pc.index_in(left, self._ahead["image_path"])
            here = len(places) - places.null_count
            # Rows of this batch come first, so those that are found lie in front.
            found = places.slice(0, here)
            if found.null_count:
                return None
            parts.append(self._ahead["image"].take(found))
            left = left.slice(here)
            if len(left):
                self._ahead = next(self._batches, None)
        return pa.concat_arrays(parts)
