"""Files that appear whole or not at all, and the one way in which JSON is written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """A temporary name beside `path` that replaces it once the block has ended without error."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = path + ".part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, as UTF-8.

    Lone surrogates, which a JSON file may hold and UTF-8 cannot, become `?`.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` as JSON, atomically: ASCII, indented by two."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)


def written_once(path: str | os.PathLike, content: Any) -> Any:
    """Read the JSON file `path`; where there is none, write `content` to it first."""
    if not os.path.exists(path):
        write_json(path, content)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def file_size(size: int) -> str:
    """A number of bytes as people write it: `512 bytes`, `12.3 kB`, `1.5 GB`."""
    if size < 1000:
        return f"{size} bytes"
    power = next((power for power in (1, 2, 3) if size < 999.95 * 1000**power), 4)
    return f"{size / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
