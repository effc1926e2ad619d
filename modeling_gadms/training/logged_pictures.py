"""Pictures in the loggers of a run: the first queries of an evaluation with their results, and a caption's scores."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import default_logdir


def keep_in_folder(callbacks: Sequence[TrainerCallback], output_dir: str) -> None:
    """Let TensorBoard's files lie in the run's folder; what is logged before training begins would go elsewhere."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = os.path.join(output_dir, default_logdir())


def show_pictures(callbacks: Sequence[TrainerCallback]) -> bool:
    """Whether one of the loggers shows pictures."""
    return any(isinstance(callback, TensorBoardCallback | WandbCallback | TrackioCallback) for callback in callbacks)


def log_pictures(callbacks: Sequence[TrainerCallback], pictures: dict[str, Image.Image], step: int) -> None:
    """Log pictures, by name, in TensorBoard, Weights & Biases and Trackio, once these have logged figures."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, picture in pictures.items():
                callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
            callback.tb_writer.flush()
        elif isinstance(callback, WandbCallback):
            import wandb

            shown = {name: wandb.Image(picture) for name, picture in pictures.items()}
            wandb.log({**shown, "train/global_step": step})
        elif isinstance(callback, TrackioCallback):
            import trackio

            shown = {name: trackio.Image(picture) for name, picture in pictures.items()}
            trackio.log({**shown, "train/global_step": step})
