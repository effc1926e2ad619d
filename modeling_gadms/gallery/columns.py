"""The user's metadata: four types of columns, read from tables, inferred from values and converted to them."""

import csv
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_webperson import DataError

ARROW = {"text": pa.string(), "number": pa.float64(), "time": pa.timestamp("us"), "bool": pa.bool_()}
SQL = {"text": "string", "number": "double", "time": "timestamp(6)", "bool": "boolean"}
OWN = ("id", "uri", "source", "sha256", "phash", "file_size", "file_time", "vector", "picture")  # of every row
KEYS = ("uri", "file_name", "image_path")  # columns of a table that name the image, the first found
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?")
_EXACT = 2**53  # whole numbers up to this are exact in float64


def column_name(name: str) -> str:
    """A name that a filter can say: letters, digits and `_`, not one of the gallery's own.

    >>> column_name("camera id"), column_name("id"), column_name("2nd")
    ('camera_id', 'id_', '_2nd')
    """
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name) or "_"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    return f"{plain}_" if plain.lower() in OWN else plain


def read_table(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Metadata of images from a csv, jsonl or parquet file: `{uri: {column: value}}`.

    Raises:
        DataError: no such file, another kind of file, broken, no column that names the image, or an image twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(path), 1):
        key = next((name for name in KEYS if name in row), None)
        if key is None:
            raise DataError(f"{path}: no column {', '.join(KEYS[:-1])} or {KEYS[-1]}; name the images in one")
        uri = str(row.pop(key))
        if uri in found:
            raise DataError(f"{path} row {number}: {uri} for the second time; keep one row for each image")
        found[uri] = row
    return found


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a csv (with a header), jsonl or parquet file; what a csv holds is turned into its likely types.

    Raises:
        DataError: no such file, another kind of file, or broken.
    """
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending == ".parquet":
            return pq.read_table(path).to_pylist()
        with open(path, encoding="utf-8-sig", newline="") as file:
            if ending == ".csv":
                return _typed(list(csv.DictReader(file, strict=True)))
            if ending in (".jsonl", ".json"):
                rows = [json.loads(line) for line in file if line.strip()]
                if all(isinstance(row, dict) for row in rows):
                    return rows
                raise DataError(f"{path}: a line is not an object; write {{...}} on each line")
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); check the file") from error
    raise DataError(f"{path}: metadata is read from .csv, .jsonl or .parquet; save it as one of these")


def _typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns of texts as numbers or truths where every value is one; empty fields are `None`."""
    readers: tuple[Callable[[str], Any], ...] = (_truth, float)
    for name in rows[0] if rows else ():
        values = [row[name] or None for row in rows]
        for reader in () if name in KEYS else readers:
            try:
                values = [None if value is None else reader(value) for value in values]
                break
            except (ValueError, KeyError):
                continue
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def infer_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The kind of each column: `"text"`, `"number"`, `"time"` or `"bool"`; lists and objects are left out.

    >>> infer_kinds([{"camera": 3, "at": "2024-01-01"}, {"camera": None, "at": "2024-01-02T10:00", "words": ["a"]}])
    {'camera': 'number', 'at': 'time'}
    """
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if kind := _kind(value):
                # a column of which some values are of another kind is text
                kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, datetime.date):  # a datetime is one too
        return "time"
    if isinstance(value, str):
        return "time" if _TIME.fullmatch(value) else "text"
    return None


def convert(value: Any, kind: str, where: str) -> Any:
    """A value as its column holds it, `None` where there is none.

    Raises:
        DataError: it does not fit; begins with `where`.
    """
    if value is None or value == "" and kind != "text" or isinstance(value, float) and value != value:
        return None
    try:
        if kind == "text":
            return value if isinstance(value, str) else str(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "number" and not isinstance(value, bool):
            number = float(value)
            if isinstance(value, int) and abs(value) > _EXACT:
                raise DataError(f"{where} is {value}, of more digits than a number keeps; give the column as text")
            return number
        if kind == "time":
            return parse_time(value)
    except DataError:
        raise
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where} is {value!r:.60}, but the column holds {kind}; correct it, or name the column anew")


def parse_time(value: Any) -> datetime.datetime:
    """A date or a time, as an object or in ISO form, as UTC without a zone; without a zone it is taken as it is.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    raise ValueError(f"{value!r} is no time")


def as_given(value: Any) -> Any:
    """A value of a row as people wrote it: whole numbers without a point, times in ISO form.

    >>> as_given(3.0), as_given(0.5), as_given(datetime.datetime(2024, 1, 2))
    (3, 0.5, '2024-01-02T00:00:00')
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.isoformat() if isinstance(value, datetime.datetime) else value
