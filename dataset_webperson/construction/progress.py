"""Progress within shards: whoever runs a stage follows the rows that its processes have taken in."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from ..worker_processes import end_with_parent

Follow = Callable[[int], Any]
_followers: list[Follow] = []


class Counts(Counter[str]):
    """Counts of a shard; a change of `rows_in` is passed on to those who follow."""

    def __setitem__(self, name: str, value: int) -> None:
        if name == "rows_in":
            for follow in _followers:
                follow(value - self[name])
        super().__setitem__(name, value)


@contextmanager
def followed_by(follow: Follow) -> Iterator[None]:
    """Within the block, `follow` is called with the number of rows that shards of this process take in."""
    _followers.append(follow)
    try:
        yield
    finally:
        _followers.remove(follow)


def start_worker(rows: "Synchronized[int]") -> None:
    """Let a process of a pool add its rows to `rows`, and end with its parent; an `initializer`."""

    def add(number: int) -> None:
        with rows.get_lock():
            rows.value += number

    _followers.append(add)
    end_with_parent()
