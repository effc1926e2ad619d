"""Rates of readers that take turns, in wall and in CPU time."""

import time
from collections.abc import Callable, Iterable, Mapping

import psutil


def timed(
    readers: Mapping[str, Callable[[], Iterable]], count: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Rows per second, and per CPU second of this process and its workers, of each of alternating rounds."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in readers.items():
            read, start, cpu_start = 0, time.perf_counter(), cpu_seconds()
            for _ in reader():
                read, end = read + 1, time.perf_counter()
            rates[name].append((read / (end - start), read / (cpu_seconds() - cpu_start)))
            assert read == count, f"{name}: {read} rows of {count}"
    return rates


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its loader workers."""
    workers = [psutil.Process(child.pid).cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in workers)
