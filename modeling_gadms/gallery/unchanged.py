"""What a small file says, kept in memory and read again only once the file has changed: a search looks at three."""

import functools
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_KEPT = 64  # files of each kind that are kept


def read_if_changed(name: str) -> Callable[[Callable[[str | os.PathLike], T]], Callable[[str | os.PathLike], T]]:
    """Decorate a function that reads the file `name` of a folder; its value is shared and must not be changed.

    A file counts as changed if its time, its size or its number on the disk differs.
    """

    def decorate(read: Callable[[str | os.PathLike], T]) -> Callable[[str | os.PathLike], T]:
        kept: dict[str, tuple[tuple[int, int, int] | None, T]] = {}
        lock = threading.Lock()

        @functools.wraps(read)
        def read_once(folder: str | os.PathLike) -> T:
            path = os.path.abspath(os.path.join(folder, name))
            state = _state(path)  # before reading: what is written meanwhile is read the next time
            with lock:
                if path in kept and kept[path][0] == state:
                    return kept[path][1]
            value = read(folder)
            with lock:
                kept[path] = state, value
                if len(kept) > _KEPT:
                    del kept[next(iter(kept))]
            return value

        return read_once

    return decorate


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
