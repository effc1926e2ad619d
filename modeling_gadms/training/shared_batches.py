"""Memory of batches that loader workers fill again and again.

A worker hands a batch over in memory that both processes see. New memory for each costs a seventh of the time in which
its images are decoded, for the system clears every page of it; so a worker keeps what the Trainer is done with. Any
other loop over a `DataLoader` can have the same:

    shared = SharedBatches(workers=4, slots=4)

    def collate(rows):
        pixels, place = shared.take((len(rows), 384, 128, 3), torch.uint8)
        for slot, row in zip(pixels, rows, strict=True):
            slot.numpy()[:] = row["image"].resize((128, 384))
        return shared.through_pipe({"pixel_values": pixels, "shared_place": place})

    loader = DataLoader(stream, sampler=stream.order(epoch=0), batch_size=64, num_workers=4, collate_fn=collate)
    for batch in shared.in_turn(loader):
        ...
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data

_SMALL = 1 << 18  # bytes: a tensor of fewer goes through the pipe; shared memory costs a file and a connection each
Place = tuple[int, int, int]  # worker, slot, and the number by which it was lent


class SharedBatches:
    """Slots of memory in each loader worker, and what of them is lent to the main process.

    Made in the main process before its workers start. A slot is filled again only when it was given back, and a worker
    that has none left takes new memory as usual, so nothing waits and nothing is lost if a batch is never given back.

    Args:
        workers (`int`): loader workers; without any, batches are ordinary memory.
        slots (`int`): batches that a worker may lend at a time: those it prepares ahead, and two.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self._lent = torch.zeros(max(workers, 1), slots, dtype=torch.int64).share_memory_()
        self._process = 0
        self._start()

    def _start(self) -> None:
        self._buffers: dict[int, torch.Tensor] = {}
        # what an earlier worker of this place lent has other numbers, and is not given back to this one by mistake
        self._numbers = itertools.count((self._process << 32) + 1)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, Place | None]:
        """Memory for a batch, and its place if it is to be given back; what is in it may be of an earlier batch."""
        worker = torch.utils.data.get_worker_info()
        if worker is None or worker.id >= len(self._lent):
            return torch.empty(shape, dtype=dtype), None
        lent = self._lent[worker.id]
        if self._process != os.getpid():
            self._process = os.getpid()
            self._start()
            lent.zero_()
        free = (lent == 0).nonzero()
        if not len(free):
            return torch.empty(shape, dtype=dtype), None
        slot, number = int(free[0]), next(self._numbers)
        size = torch.Size(shape).numel() * dtype.itemsize
        if slot not in self._buffers or self._buffers[slot].numel() < size:
            self._buffers[slot] = torch.empty(size, dtype=torch.uint8).share_memory_()
        lent[slot] = number
        return self._buffers[slot][:size].view(dtype).view(shape), (worker.id, slot, number)

    def through_pipe(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as a worker is to hand it over; the main process receives tensors alone, and has them already."""
        if torch.utils.data.get_worker_info() is None:
            return batch
        return {name: _ByValue(part) if _is_small(part) else part for name, part in batch.items()}

    def in_turn(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Batches without their `shared_place`, given back as the next is asked for: copy what is to stay longer."""
        for batch in batches:
            place = batch.pop("shared_place", None)
            yield batch
            self.give_back(place)

    def give_back(self, place: Place | None) -> None:
        """Let a worker fill the place again: its batch is not looked at any more."""
        if place is not None:
            worker, slot, number = place
            if self._lent[worker, slot] == number:
                self._lent[worker, slot] = 0


def _is_small(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.nbytes < _SMALL


class _ByValue:
    """A tensor that is pickled with its values, and is a tensor again when it is read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable[[np.ndarray], torch.Tensor], tuple[np.ndarray]]:
        return torch.from_numpy, (self._tensor.numpy(),)
