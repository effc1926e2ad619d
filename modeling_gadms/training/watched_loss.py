"""A loss that is looked at once it has come from the device, which meanwhile goes on with its work."""

import math
from collections.abc import Callable

import torch

from ..towers_gadms import on_host


class WatchedLoss:
    """The loss of one batch, on its way to the CPU.

    Args:
        loss (`torch.Tensor`): scalar.
        step (`int`): the optimiser step it belongs to, from 1.
        image_paths (`list[str]`): the images of the batch.
    """

    def __init__(self, loss: torch.Tensor, step: int, image_paths: list[str]) -> None:
        self.step, self.image_paths = step, image_paths
        self.value = loss.detach().to("cpu", non_blocking=True)
        self.arrived = None if on_host(loss) else torch.get_device_module(loss.device).Event()
        if self.arrived is not None:
            self.arrived.record()

    def refuse_not_finite(self, steps_done: int, last_checkpoint: Callable[[], str | None]) -> None:
        """Stop if the loss is not finite; waits for no more than its own computation.

        Raises:
            FloatingPointError: it is not; names the step, the images, and the checkpoint to go back to.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if math.isfinite(self.value.item()):
            return
        updated = "were updated with it" if steps_done >= self.step else "were not updated"
        raise FloatingPointError(
            f"the loss is {self.value.item()} at step {self.step}, on a batch of images "
            f"{', '.join(self.image_paths)}. Weights {updated}; last checkpoint: {last_checkpoint() or 'none yet'}. "
            "Lower the learning rate, or look at these images"
        )
