"""What the processes of a stage share: the rows that they have taken in, for the bar, and the GPUs, one for each."""

import os
import re
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


def own_gpu(number: int, visible: str | None, present: int) -> str | None:
    """The GPU of worker `number`, as `CUDA_VISIBLE_DEVICES` names it; `None` where there are none to choose from.

    >>> own_gpu(5, None, 4), own_gpu(1, "2,3", 8), own_gpu(0, None, 0), own_gpu(3, "", 4)
    ('1', '3', None, None)

    Args:
        number: of the worker, from 0.
        visible: `CUDA_VISIBLE_DEVICES` of the parent, where it is set.
        present: GPUs of the machine.
    """
    names = [name for name in visible.split(",") if name] if visible is not None else [str(n) for n in range(present)]
    return names[number % len(names)] if names else None


def take_gpu(number: int) -> None:
    """Let this process, worker `number` of its machine, see a GPU of its own alone."""
    present = len([name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)])
    if (gpu := own_gpu(number, os.environ.get("CUDA_VISIBLE_DEVICES"), present)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def start_worker(rows: "Synchronized[int]", started: "Synchronized[int]") -> None:
    """Let a process of a pool add its rows to `rows`, take a GPU of its own, and end with its parent.

    An `initializer`; `started` counts the workers. It runs before the process first asks for a GPU.
    """
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    take_gpu(number)

    def add(number: int) -> None:
        with rows.get_lock():
            rows.value += number

    _followers.append(add)
    end_with_parent()
