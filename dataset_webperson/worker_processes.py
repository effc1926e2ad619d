"""Processes of a pool that do not outlive the command that started them."""

import multiprocessing
import os
import threading
from typing import Any


def end_with_parent(parent: Any = None) -> None:
    """End this process when the one that started it is gone, however that was ended; an `initializer` for pools.

    Without it the processes of a pool whose parent was killed wait for work forever. `parent` is the process to watch
    where another library than `multiprocessing` started this one.
    """

    def watch() -> None:
        if watched := parent or multiprocessing.parent_process():
            watched.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
