"""Columns of images as others write them: `datasets` images, structs, bytes, or paths of files."""

import os
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..findings import DataError


def refuse_type(kind: pa.DataType, where: str) -> None:
    """Refuse a column `image` whose type cannot hold image files.

    Args:
        kind: type of the column in Arrow: binary, string, or a struct with `bytes` and `path`, or one of them.
        where: the file or data set, for the message.

    Raises:
        `DataError`: names the column, its type, and what to write.
    """
    if _is_bytes(kind) or _is_text(kind):
        return
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if (
            fields.keys() & {"bytes", "path"}
            and ("bytes" not in fields or _is_bytes(fields["bytes"]) or pa.types.is_null(fields["bytes"]))
            and ("path" not in fields or _is_text(fields["path"]) or pa.types.is_null(fields["path"]))
        ):
            return
    raise DataError(
        f"{where}: the column image is {str(kind):.80}; write the bytes of each image file (binary) or its path "
        "(string), or save the data set with a column of datasets.Image()"
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def as_struct(value: Any) -> dict[str, Any]:
    """An image of such a column as `{"bytes", "path"}`, each perhaps `None`."""
    if isinstance(value, dict):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return {"bytes": value if isinstance(value, bytes) else None, "path": value if isinstance(value, str) else None}


def cast_images(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """The rows with their column `image` as `datasets.Image()`; rows that have it so are returned as they are.

    Args:
        rows: of a stored data set.
        name: the folder or Hub id they come from. Relative paths are looked for in the folder.

    Raises:
        `DataError`: the column's type cannot hold images, or a path leads to no file; names the row.
    """
    if isinstance(rows.features["image"], datasets.Image):
        return rows
    kind = rows.features.arrow_schema.field("image").type
    refuse_type(kind, name)
    if not _is_bytes(kind) and not _all_have_bytes(rows):
        images = map(as_struct, rows.select_columns("image").with_format(None)["image"])
        found = [_found(image, name, number) for number, image in enumerate(images)]
        rows = rows.remove_columns("image").add_column("image", found, feature=datasets.Image(decode=False))
    return rows.cast_column("image", datasets.Image())


def _all_have_bytes(rows: datasets.Dataset) -> bool:
    column = rows.data.column("image")
    kind = column.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return column.null_count == 0 and pc.struct_field(column, "bytes").null_count == 0


def with_image_paths(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """The rows with a column `image_path`, different in every row, where they have none.

    It is the path stored with the image, relative to the folder `name`; where several rows share it, as base names
    often do, or there is none, it begins with the row's number.
    """
    if "image_path" in rows.column_names:
        return rows
    stored: list[str | None] = []
    undecoded = rows.select_columns("image").cast_column("image", datasets.Image(decode=False)).with_format("arrow")
    for batch in undecoded.iter(1000):
        stored += pc.struct_field(batch.column("image"), "path").to_pylist()
    times = Counter(stored)
    paths = []
    for number, path in enumerate(stored):
        shown = os.path.relpath(path, name) if path and os.path.isabs(path) and os.path.isdir(name) else path
        paths.append(shown if path and times[path] == 1 else f"row {number}" + (f", {shown}" if path else ""))
    return rows.add_column("image_path", paths)


def refuse_missing(rows: datasets.Dataset, name: str = "the data set") -> None:
    """Refuse rows without an image or a caption, by the counts of missing values: nothing is decoded.

    Args:
        rows: with `image`, and `captions` or `caption1`, `caption2`, ...; columns that are absent are passed over.
        name: of the data set, for the message.

    Raises:
        `DataError`: names the first rows, as `rows[...]` counts them.
    """
    for column in rows.column_names:
        if column not in ("image", "captions") and not (column[:7] == "caption" and column[7:].isdigit()):
            continue
        missing = missing_places(rows.data.column(column))
        if rows._indices is not None and len(missing):
            order = rows._indices.column(0).to_numpy()
            missing = np.flatnonzero(np.isin(order, missing))
        if len(missing):
            shown = ", ".join(map(str, missing[:5])) + (", .." if len(missing) > 5 else "")
            what = "no image" if column == "image" else f"a missing caption in {column}"
            raise DataError(
                f"{name}: {what} in {len(missing):,} of {len(rows):,} rows, row {shown}; fill them, or leave the rows "
                "out with `dataset.select` or `dataset.filter`"
            )


def missing_places(column: pa.ChunkedArray) -> np.ndarray:
    """Positions of the values that are missing: null, a struct of an image with neither bytes nor path, or a list in
    which something is null; int64, in order."""
    none = pc.is_null(column)
    kind = column.type
    if pa.types.is_struct(kind):
        names = [field.name for field in kind if field.name in ("bytes", "path")]
        parts = [pc.is_null(pc.struct_field(column, name)) for name in names]
        if not parts or any(not pc.any(part).as_py() for part in parts):
            return np.flatnonzero(none.to_numpy())
        whole = parts[0] if len(parts) == 1 else pc.and_(*parts)
        return np.flatnonzero(pc.or_(none, whole).to_numpy())
    places = np.flatnonzero(none.to_numpy())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = pc.is_null(pc.list_flatten(column)).to_numpy()
        if inner.any():
            places = np.union1d(places, pc.list_parent_indices(column).to_numpy()[inner])
    return places


def _found(image: dict[str, Any], name: str, row: int) -> dict[str, Any]:
    """The image, its path absolute where only that leads to it."""
    if image["bytes"] is not None or image["path"] is None:
        return image
    path = os.path.join(name, image["path"])  # an absolute path stays as it is
    if not os.path.isfile(path):
        raise DataError(
            f"{name}: row {row}: image {image['path']!r} is no file of that folder; put the files there, or write "
            "absolute paths"
        )
    return {"bytes": None, "path": os.path.abspath(path)}
