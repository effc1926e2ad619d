"""The list of pictures that were taken down, which travels with every release: `removed.parquet`.

It names each picture by the SHA-256 of its file, so that whoever holds an older copy, or a part of one, can drop it.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .files import replacing
from .findings import DataError

NAME = "removed.parquet"
SCHEMA = pa.schema([("image_sha256", pa.string()), ("reason", pa.string())])


def read_removed(path: str | os.PathLike | None) -> dict[str, str]:
    """`{image_sha256: reason}` of a list; empty for `None`. Raises `DataError` for a file that is none."""
    if path is None:
        return {}
    try:
        columns = pq.read_table(path, columns=SCHEMA.names).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{os.fspath(path)}: not a list of removed pictures ({error}); download it again") from error
    return dict(zip(columns["image_sha256"], columns["reason"], strict=True))


def write_removed(path: str, removed: Mapping[str, str]) -> None:
    """Write a list, sorted, atomically."""
    rows = [{"image_sha256": digest, "reason": reason} for digest, reason in sorted(removed.items())]
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)


def removed_beside(folder: str | os.PathLike | None) -> str | None:
    """The list that a folder of a release holds."""
    path = os.path.join(folder, NAME) if folder is not None else ""
    return path if os.path.exists(path) else None


def is_removed(extra: Mapping[str, Any], data: bytes, removed: Mapping[str, str]) -> bool:
    """Whether a row is listed, by its column `image_sha256` or by the bytes of its image."""
    return bool(removed) and (extra.get("image_sha256") in removed or hashlib.sha256(data).hexdigest() in removed)
