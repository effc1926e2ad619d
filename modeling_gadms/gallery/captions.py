"""Captions whose images are in a gallery, for calibration and for measuring the approximate search."""

import os

from dataset_webperson import DataError

from ..rows import is_caption_column
from .columns import KEYS, read_rows


def read_captions(path: str | os.PathLike) -> list[tuple[str, str]]:
    """`(uri, caption)` of each caption in a csv, jsonl or parquet file.

    A row names its image (`uri`, `file_name` or `image_path`), and has its captions in `caption`, in `captions` (a
    list), or in `caption1`, `caption2`, ...

    Raises:
        DataError: the file cannot be read, or a row has no image or no caption.
    """
    found = []
    for number, row in enumerate(read_rows(path), 1):
        key = next((name for name in KEYS if row.get(name)), None)
        held = row.get("captions") or [row[name] for name in row if name == "caption" or is_caption_column(name)]
        texts = [text for text in ([held] if isinstance(held, str) else held) if text]
        if key is None or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path} row {number}: needs `uri` and `caption`; it has {', '.join(map(str, row))}")
        found += [(str(row[key]), text) for text in texts]
    if not found:
        raise DataError(f"{path}: no captions; give a file with columns uri and caption")
    return found
