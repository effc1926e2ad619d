"""The masks that a cell of the masking table draws, and the scores that it draws them from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from modeling_gadms.masking_gadms import DualMasking, RandomMasking
from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.token_scores_gadms import gradient_attention_scores, minmax
from modeling_gadms.towers_gadms import valid_tokens
from modeling_gadms.training.arguments import GADMSTrainingArguments

SCORES = "random", "cosine", "gass"
CELLS = [
    "none",
    "oracle SDM",
    "evidence SDM",
    "evidence both",
    *(f"{score} {parts}" for score in SCORES for parts in ("SDM", "MTP", "both")),
]
SHARES = "hidden_rate", "prediction_rate"
RATES = 0.16, 0.065  # shares of words that GASS hides and predicts in the demo, as logged in training


@dataclass(frozen=True)
class RandomDualMasking(RandomMasking):
    """Two masks as the paper's, at constant rates."""

    noise: float = 0.0

    def noise_probability(self, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.noise  # without scores, these are zeros


@dataclass
class StudyArguments(GADMSTrainingArguments):
    cell: str = field(default="none", metadata={"help": "Masking and the losses that it enters."})

    def masks(self) -> DualMasking | RandomMasking | None:
        kind, parts = self.cell.split()[0], self.cell.split()[-1]
        if kind == "none":
            return None
        if kind == "random":
            return RandomDualMasking(RATES[1], noise=RATES[0] if parts != "MTP" else 0.0)
        masks = super().masks()
        return replace(masks, alpha_noise=0.0) if parts == "MTP" else masks


@torch.no_grad()
def cosine_scores(
    text_model: nn.Module, text_projection: nn.Module, image_embeds: torch.Tensor, input_ids: torch.Tensor
) -> torch.Tensor:
    """NAM's score in the place of GASS: cosine of each projected token to the image, scaled within the caption."""
    tokens = F.normalize(text_projection(text_model(input_ids).last_hidden_state), dim=-1)
    cosines = (tokens @ F.normalize(image_embeds, dim=-1)[..., None]).squeeze(-1)
    return minmax(cosines.float(), valid_tokens(input_ids))


def use_score(model: GADMSForPreTraining, cell: str, num_layers: int | None) -> None:
    """Let the model draw its masks from the score that the cell names."""
    score: Callable[..., torch.Tensor] = cosine_scores if cell.startswith("cosine") else gradient_attention_scores
    if num_layers is not None:
        score = partial(score, num_layers=num_layers)
    model.score_captions = partial(score, model.gadms.text_model, model.gadms.text_projection)
