"""One writer at a time: a lock that the system takes back however its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch.distributed as dist

from dataset_webperson import DataError

from ..distributed_gadms import num_processes


@contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the gallery's lock for writing; the processes of one launcher hold it together.

    Raises:
        DataError: another process, or thread, is writing.
    """
    with ExitStack() as stack:
        if num_processes() == 1:
            stack.enter_context(_held(folder, "lock", fcntl.LOCK_EX))
        else:  # a second launch meets the first at the locks of the ranks, a lone process at the shared one
            stack.enter_context(_held(folder, "lock", fcntl.LOCK_SH))
            stack.enter_context(_held(folder, f"lock-{dist.get_rank()}", fcntl.LOCK_EX))
        yield


@contextmanager
def _held(folder: str | os.PathLike, name: str, kind: int) -> Iterator[None]:
    with open(os.path.join(folder, name), "a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another process is changing this gallery; wait until it has ended") from error
        yield
