"""Images per second of the models that a stage calls, by themselves, in as many processes."""

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore
from typing import Any

from dataset_webperson.construction.persons.detectors import open_models
from dataset_webperson.construction.shards import read_rows
from dataset_webperson.construction.stages.crop import CropOptions, crop_shard
from dataset_webperson.construction.stages.quality import QualityOptions, open_scorer, read_batch

SPAWN = multiprocessing.get_context("spawn")

CallsOf = Callable[[list[str], Any, str], tuple[int, list[Callable]]]  # sources, options, folder


def calls_of_crop(lists: list[str], options: CropOptions, folder: str) -> tuple[int, list[Callable]]:
    """Number of images, and the models' calls for them, with what the stage gave the models."""
    calls = []
    models = open_models(options.detector, options.pose)
    for model in models:
        run = model.run
        model.run = lambda pictures, run=run: calls.append(partial(run, pictures)) or run(pictures)
    images = sum(crop_shard(path, f"{folder}/{os.getpid()}.parquet", options)["rows_in"] for path in lists)
    return images, calls


def calls_of_quality(shards: list[str], options: QualityOptions, folder: str) -> tuple[int, list[Callable]]:
    """As `calls_of_crop`."""
    scorer, calls, images = open_scorer(options.model), [], 0
    for shard in shards:
        rows = read_rows(shard)
        while batch := read_batch(rows, scorer, options.batch_size):
            calls.append(partial(scorer.forward, batch.inputs))
            images += len(batch.rows)
    calls[0]()
    return images, calls


def bare_models(
    calls_of: CallsOf, sources: list[str], options: Any, folder: str, ready: Semaphore, start: Event, results: Queue
) -> None:
    """A process of nothing but models."""
    images, calls = calls_of(sources, options, folder)
    ready.release()
    start.wait()
    began = time.time()
    for call in calls:
        call()
    results.put((images, began, time.time()))


def bare_rate(calls_of: CallsOf, sources: list[str], options: Any, folder: str, workers: int) -> float:
    """Images per second of the models alone, in this many processes at a time."""
    ready, start, results = SPAWN.Semaphore(0), SPAWN.Event(), SPAWN.Queue()
    parts = [sources[number::workers] for number in range(workers)]
    jobs = [(calls_of, part, options, folder, ready, start, results) for part in parts]
    processes = [SPAWN.Process(target=bare_models, args=job) for job in jobs]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start.set()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(images for images, _, _ in measured) / (
        max(end for *_, end in measured) - min(began for _, began, _ in measured)
    )
