"""Json files of any length, one entry at a time: memory does not grow with the file."""

import mmap
import os
import re
from collections.abc import Iterator
from typing import IO, Any

from ..findings import DataError, reason_of

_NAMES = {"[": "a list", "{": "a dict"}
# Strings are passed over, so that a word in one is not found.
_NO_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|(-?(?:NaN|Infinity))\b', re.DOTALL)


class JsonError(DataError):
    """A file that cannot be opened, is not valid json, or breaks off. `code` is the kind of finding."""

    code = "json-broken"


class JsonNaNError(JsonError):
    """A whole file that Python wrote and json does not allow: `NaN` or `Infinity` stands for a value."""

    code = "json-nan"


class JsonShapeError(DataError):
    """Valid json, but a dict where a list belongs or the other way round."""

    code = "json-wrong-shape"


def _open(path: str | os.PathLike) -> tuple[IO[bytes], str]:
    """The file, placed after a byte-order mark, and the first character of its content ("" when it has none)."""
    try:
        file = open(path, "rb")  # the caller closes it
    except OSError as error:
        raise JsonError(
            f"{os.fspath(path)}: cannot be opened ({error.strerror}); check its path and rights"
        ) from error
    start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(start)
    first = b""
    while block := file.read(4096):
        if block := block.lstrip():
            first = block[:1]
            break
    file.seek(start)
    return file, first.decode("latin-1")


def _read(path: str | os.PathLike, opening: str) -> Iterator[Any]:
    import ijson  # here, for those who read no json may lack it: a GPU is checked with drawings

    file, first = _open(path)
    with file:
        if not first:
            raise JsonError(f"{os.fspath(path)}: empty file, no json in it; download it again")
        if first != opening:
            found = _NAMES.get(first, f"something that starts with {first!r}")
            raise JsonShapeError(
                f"{os.fspath(path)}: holds {found} at its top, {_NAMES[opening]} belongs there; pass the right json"
            )
        if opening == "[":
            entries = ijson.items(file, "item", use_float=True)
        else:
            entries = ijson.kvitems(file, "", use_float=True)
        count = 0
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except (ijson.JSONError, UnicodeDecodeError) as error:
                if no_number := _find_no_number(path):
                    raise JsonNaNError(
                        f"{os.fspath(path)}: {no_number[0]} at byte {no_number[1]:,}, after entry {count:,}, which "
                        "json does not know; write null there, or leave such rows out"
                    ) from error
                reason = reason_of(error)
                cut = "premature EOF" in reason or "Incomplete" in reason
                place = f"; the file ends at byte {os.path.getsize(path):,}" if cut else ""
                raise JsonError(
                    f"{os.fspath(path)}: not valid json after entry {count:,}: {reason}{place}; download it again"
                ) from error
            count += 1
            yield entry


def _find_no_number(path: str | os.PathLike) -> tuple[str, int] | None:
    """The first `NaN` or `Infinity` outside a string, and its byte."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _NO_NUMBER.finditer(content):
            if match[1]:
                return match[1].decode(), match.start()
    return None


def iter_list(path: str | os.PathLike) -> Iterator[Any]:
    """The entries of a json list, in order.

    Raises:
        `JsonShapeError`: the file holds something else than a list.
        `JsonError`: the file cannot be opened, is not json or breaks off; raised where the reading gets there. A whole
            number of more than 64 bits counts as broken.
    """
    return _read(path, "[")


def iter_dict(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """The `(key, value)` pairs of a json dict, in order, keys that come twice included.

    Raises: as `iter_list`, with a dict in the place of the list.
    """
    return _read(path, "{")
