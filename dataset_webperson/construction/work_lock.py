"""One build at a time in a `work` folder: a second would remove the files that the first is writing."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from ..findings import DataError


@contextmanager
def work_lock(work: str) -> Iterator[None]:
    """Hold the folder `work`; `build.lock` in it says who does. What a dead process of this host held is free.

    Raises:
        `DataError`: another process holds it, or one on another host that may still run.
    """
    os.makedirs(work, exist_ok=True)
    path, host = os.path.join(work, "build.lock"), socket.gethostname()
    # Not truncated on opening, and never removed: whoever waited for a removed file would hold a lock on nothing.
    with open(path, "a+", encoding="utf-8") as file:
        free = True
        try:
            # The system frees the lock when a process dies, so a new process with its number is not taken for it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # some network file systems have no locks; what is written in the file still holds between hosts
        file.seek(0)
        pid, _, holder = file.read().strip().partition(" ")
        if not free:
            by = f"process {pid} on {holder}" if holder else "another process"
            raise DataError(f"{path}: {by} is building here; wait for it, or give this build another `work` folder")
        if holder not in ("", host):
            # Locks need not reach from host to host.
            raise DataError(
                f"{path}: process {pid} on {holder} is building here; wait for it, or delete this file if it is dead"
            )
        try:
            _write(file, f"{os.getpid()} {host}\n")
            yield
        finally:
            _write(file, "")


def _write(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
