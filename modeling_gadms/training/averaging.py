"""Averages of weights: an exponential one over the steps of a run, and the plain mean of models saved by several."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from dataset_webperson import DataError
from dataset_webperson.files import replacing

AVERAGE_FILE = "weight_average.safetensors"  # in a checkpoint, beside the weights that are trained


class WeightAverage(TrainerCallback):
    """The exponential moving average of the trained weights: `average = decay * average + (1 - decay) * weights`.

    It begins with the weights before the first step, is updated after each, and is held in float32.

    Args:
        decay (`float`): between 0 and 1.
        checkpoint (`str`, *optional*): one of the run that is resumed, whose average goes on.
    """

    def __init__(self, decay: float, checkpoint: str | None = None) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.checkpoint = checkpoint
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, *_: Any, **given: Any) -> None:
        self.weights = {name: weight.detach().float().clone() for name, weight in _trained(given["model"])}
        if self.checkpoint is not None:
            self.load(self.checkpoint)

    def on_step_end(self, *_: Any, **given: Any) -> None:
        now = [weight.detach().float() for _, weight in _trained(given["model"])]
        self.update(list(self.weights.values()), now, None)

    def save(self, folder: str) -> None:
        with replacing(os.path.join(folder, AVERAGE_FILE)) as temporary:
            save_file(self.weights, temporary)

    def load(self, folder: str) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            DataError: it has none, or one of other weights.
        """
        file = os.path.join(folder, AVERAGE_FILE)
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{file}: no average of weights can be read there; resume a run that had ema_decay, or leave it out"
            ) from error
        shapes = [{name: weight.shape for name, weight in each.items()} for each in (found, self.weights)]
        if shapes[0] != shapes[1]:
            raise DataError(f"{file}: the average is of other weights than those that are trained; start anew")
        for name, weight in self.weights.items():
            weight.copy_(found[name])

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        for name, weight in _trained(model):
            weight.copy_(self.weights[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the average; afterwards, its own weights to the last bit."""
        own = [weight.detach().clone() for _, weight in _trained(model)]
        self.put_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, weight), kept in zip(_trained(model), own, strict=True):
                    weight.copy_(kept)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def mean_of_weights(models: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """The mean of each weight over several models, computed in float64, in the dtype of the first.

    Raises:
        ValueError: their weights differ in name or shape.
    """
    states = [model.state_dict() for model in models]
    shapes = [{name: weight.shape for name, weight in state.items()} for state in states]
    for number, other in enumerate(shapes):
        if other != shapes[0]:
            differ = sorted(name for name in shapes[0].keys() | other.keys() if shapes[0].get(name) != other.get(name))
            raise ValueError(
                f"model {number + 1} differs from the first in the shape of {differ[0]}: they do not average"
            )
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(weight.dtype)
        if weight.is_floating_point()
        else weight
        for name, weight in states[0].items()
    }
