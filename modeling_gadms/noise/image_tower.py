"""An image tower copied from a model, on which something about words is learnt."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..modeling_gadms import GADMSModel


class OnImageTower(nn.Module):
    """A module with the image tower and projection of a model, float32, that are its own to change.

    Args:
        gadms ([`GADMSModel`]): the tower and the projection are copied.
    """

    def __init__(self, gadms: GADMSModel) -> None:
        super().__init__()
        self.tower = copy.deepcopy(gadms).float()
        del self.tower.text_model, self.tower.text_projection

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, height, width)` -> `(B, S, D)`, each patch and CLS in the joint space."""
        return self.tower.project_image_tokens(self.tower.vision_model(pixel_values).last_hidden_state)

    def tower_parameters(self) -> list[nn.Parameter]:
        return [*self.tower.vision_model.parameters(), *self.tower.visual_projection.parameters()]

    def head_parameters(self) -> list[nn.Parameter]:
        """All others."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("tower.")]


def learning_steps(
    module: OnImageTower,
    head_learning_rate: float,
    tower_learning_rate: float,
    steps: int,
    weight_decay: float = 0.0,
) -> Callable[[torch.Tensor | None, Sequence[str]], None]:
    """What takes a step down a loss: AdamW at rates that rise and fall once in so many steps.

    The tower stays as it is at a rate of 0. The function takes the loss, or `None` for a batch that has none, and the
    paths of the batch's images.

    Raises:
        FloatingPointError: a loss is not finite; names the images.
    """
    groups, rates = [module.head_parameters()], [head_learning_rate]
    if tower_learning_rate > 0:
        groups.append(module.tower_parameters())
        rates.append(tower_learning_rate)
    module.tower.requires_grad_(tower_learning_rate > 0)
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)

    def step(loss: torch.Tensor | None, image_paths: Sequence[str]) -> None:
        if loss is not None:
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} on the images {', '.join(image_paths)}: look at them, or lower "
                    "tower_learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()
            for group in groups:
                nn.utils.clip_grad_norm_(group, 1.0)
            optimizer.step()
        schedule.step()

    return step
