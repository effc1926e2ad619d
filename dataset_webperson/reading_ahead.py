"""Makes the next item while the caller works on this one: reading and decoding beside a model."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order; a thread makes the next one meanwhile.

    What making an item raises is raised in its turn, when those before it have been given out. A caller that stops
    early waits for the item that is being made.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, iterator, _END)
            yield item  # type: ignore[misc]  # not the end
