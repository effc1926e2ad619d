"""Processes of a pool that do not outlive the command that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that was ended; an `initializer` for pools.

    Without it the processes of a pool whose parent was killed wait for work forever.
    """

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
