"""Images per second of a stage, from the moment at which the models of all workers are open."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from dataset_webperson.construction.captions.client import load_openai
from dataset_webperson.construction.captions.words import find_attributes
from dataset_webperson.construction.persons.detectors import open_models
from dataset_webperson.construction.shards import Stage, run_stage, shard_counts
from dataset_webperson.construction.stages.captioning import CaptionOptions
from dataset_webperson.construction.stages.crop import CropOptions
from dataset_webperson.construction.stages.quality import QualityOptions, open_scorer
from dataset_webperson.files import write_json

from .caption_rates import CAPTION


def timed(
    stage: Stage, open_its_models: Callable[[Any], None], workers: int, source: str, target: str, options: Any
) -> dict[str, int]:
    """A stage that starts when the models of all workers are open, and writes down when it began and ended."""
    open_its_models(options)
    folder = os.path.dirname(target)
    write_json(os.path.join(folder, f"{os.getpid()}.ready"), {})
    while sum(name.endswith(".ready") for name in os.listdir(folder)) < workers:
        time.sleep(0.005)
    began = time.time()
    counts = stage(source, target, options)
    write_json(target + ".json", [began, time.time()])
    return counts


def stage_rate(
    stage: Stage, open_its_models: Callable[[Any], None], sources: list[str], folder: str, options: Any, workers: int
) -> float:
    """Rows read a second, from the first shard's beginning to the last one's end."""
    run_stage(partial(timed, stage, open_its_models, workers), sources, folder, options, workers)
    times, rows = [], 0
    for name in os.listdir(folder):
        if name.endswith(".parquet"):
            rows += shard_counts(os.path.join(folder, name))["rows_in"]
            with open(os.path.join(folder, name + ".json")) as file:
                times.append(json.load(file))
    return rows / (max(end for _, end in times) - min(began for began, _ in times))


def no_models(options: Any) -> None:
    """For stages without any."""


def open_for_caption(options: CaptionOptions) -> None:
    load_openai()


def open_for_crop(options: CropOptions) -> None:
    detector, pose = open_models(options.detector, options.pose)
    pictures = [Image.new("RGB", (640, 480))] * options.batch_size
    # the first calls take memory, as those of the bare models did
    detector.persons(pictures)
    pose.keypoints(pictures)


def open_for_quality(options: QualityOptions) -> None:
    scorer = open_scorer(options.model)
    scorer.forward(scorer.prepare([Image.new("RGB", (64, 128))], [CAPTION], [0], [find_attributes(CAPTION)]))
