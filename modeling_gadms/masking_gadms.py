"""Dual masking: likely noise is hidden before alignment, informative tokens are hidden to be predicted.

Also here: the random masking of IRRA's fine-tuning recipe.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .towers_gadms import eos_positions, on_host, random_ids, valid_tokens

# uniform numbers per token: for the noise mask, the prediction mask, the fate of a chosen token, and a random token
NUM_DRAWS = 4


@dataclass(frozen=True)
class DualMasking:
    """Constants of the two masks (GA-DMS, section 3.3; both thresholds are the released code's).

    Args:
        alpha_noise (`float`): highest probability of the noise mask.
        alpha_info (`float`): highest probability of the prediction mask.
        steepness (`float`): slope of both sigmoids (lambda).
        gamma_noise (`float`): `1 - score` at which the noise mask has half its probability.
        gamma_info (`float`): score at which the prediction mask has half its probability.

    Raises:
        ValueError: a probability is outside [0, 1].
    """

    uses_scores: ClassVar[bool] = True
    in_place: ClassVar[bool] = False

    alpha_noise: float = 0.2
    alpha_info: float = 0.3
    steepness: float = 20.0
    gamma_noise: float = 0.9
    gamma_info: float = 0.1

    def __post_init__(self) -> None:
        for name in ("alpha_noise", "alpha_info"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, between 0 and 1; got {getattr(self, name)}")

    def noise_probability(self, scores: torch.Tensor) -> torch.Tensor:
        """Probability that a token of score `s` in [0, 1] is hidden before alignment: high where `s` is low."""
        return self.alpha_noise * torch.sigmoid(self.steepness * ((1 - scores) - self.gamma_noise))

    def info_probability(self, scores: torch.Tensor) -> torch.Tensor:
        """Probability that a token of score `s` in [0, 1] is hidden and predicted: high where `s` is high."""
        return self.alpha_info * torch.sigmoid(self.steepness * (scores - self.gamma_info))

    @property
    def highest_info_probability(self) -> float:
        """What [`info_probability`] never exceeds."""
        return self.alpha_info


@dataclass(frozen=True)
class RandomMasking:
    """All tokens are equally likely to be hidden and predicted, and none is hidden before alignment (IRRA).

    Args:
        probability (`float`): probability that a token is hidden and predicted (0.15 in IRRA, as in BERT).
        in_place (`bool`): align the masked caption too, as the released fine-tuning does, not the whole one.

    Raises:
        ValueError: the probability is outside [0, 1].
    """

    uses_scores: ClassVar[bool] = False

    probability: float = 0.15
    in_place: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1; got {self.probability}")

    def noise_probability(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scores)

    def info_probability(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, self.probability)

    @property
    def highest_info_probability(self) -> float:
        return self.probability


Masking = DualMasking | RandomMasking


@dataclass
class MaskedCaptions:
    """Two views of the same captions.

    Attributes:
        noise_input_ids (`torch.Tensor` of shape `(B, T)`): captions with likely noise replaced by the mask token.
        prediction_input_ids (`torch.Tensor` of shape `(B, T)`): captions with tokens replaced, to be predicted.
        noise_mask (`torch.Tensor` of shape `(B, T)`): bool, tokens that the noise view hides.
        prediction_mask (`torch.Tensor` of shape `(B, T)`): bool, tokens to predict.
    """

    noise_input_ids: torch.Tensor
    prediction_input_ids: torch.Tensor
    noise_mask: torch.Tensor
    prediction_mask: torch.Tensor

    def padded(self, width: int) -> "MaskedCaptions":
        """The same views with id 0 at every position after EOS, up to `width`: tensors of shape `(B, width)`."""
        positions = torch.arange(width, device=self.noise_mask.device)

        def pad(values: torch.Tensor) -> torch.Tensor:
            return F.pad(values, (0, width - values.shape[1]))

        noise, prediction = pad(self.noise_input_ids), pad(self.prediction_input_ids)
        after_eos = positions > eos_positions(noise)[:, None]  # the same in both views
        return MaskedCaptions(
            noise.masked_fill(after_eos, 0),
            prediction.masked_fill(after_eos, 0),
            pad(self.noise_mask),
            pad(self.prediction_mask),
        )


def places_to_predict(prediction_mask: torch.Tensor, masking: Masking) -> torch.Tensor:
    """Where the tokens to predict are in the flattened `(B, T)` mask, in row-major order: int64 `(M,)`.

    On the CPU these are the true places. To count them on a device is to wait for it, so there `M` follows from the
    shape of the mask alone, [`most_to_predict`], and other places fill up the end.
    """
    chosen = prediction_mask.flatten()
    if on_host(chosen):
        return chosen.nonzero()[:, 0]
    return first_true(chosen, most_to_predict(prediction_mask.shape[0], prediction_mask.shape[1], masking))


def first_true(flags: torch.Tensor, count: int) -> torch.Tensor:
    """Indices `(count,)` of the first true of `(N,)` flags, then of the first false, whatever their numbers."""
    return (~flags).byte().argsort(stable=True)[:count]


def most_to_predict(rows: int, width: int, masking: Masking) -> int:
    """A number of tokens that `rows` captions of `width` tokens practically never exceed, a multiple of 64.

    The mean of independent draws of the highest probability, eight standard deviations (less than once in 10^14), and
    a token of each caption of which nothing was drawn.
    """
    tokens, highest = rows * width, masking.highest_info_probability
    most = tokens * highest + 8 * math.sqrt(tokens * highest * (1 - highest)) + rows
    return min(64 * math.ceil(most / 64), tokens)


def draw_uniforms(batch_size: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Random numbers for [`mask_captions`]: `(batch_size, NUM_DRAWS, width)`, float32, on the generator's device."""
    return torch.rand(batch_size, NUM_DRAWS, width, generator=generator, device=generator.device)


def mask_captions(
    input_ids: torch.Tensor,
    scores: torch.Tensor | None,
    uniforms: torch.Tensor,
    masking: Masking,
    mask_token_id: int,
    text_config: PreTrainedConfig | None = None,
) -> MaskedCaptions:
    """Draw both views of a batch of captions.

    In the prediction view 80 % of the chosen tokens become the mask, 10 % a random token, and 10 % stay. If nothing
    was chosen, the token of highest score is masked, or without scores the first. BOS, EOS and padding are never
    chosen, so a caption without a valid token stays as it is.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): captions.
        scores (`torch.Tensor` of shape `(B, T)`): token scores in [0, 1]; `None` if `masking` uses none.
        uniforms (`torch.Tensor` of shape `(B, NUM_DRAWS, W)`, `W >= T`): from [`draw_uniforms`]. A caption's masks
            depend on its own row only, so neither padding nor the rest of the batch changes them.
        masking ([`DualMasking`] or [`RandomMasking`]): constants of the masks.
        mask_token_id (`int`): id of the mask token.
        text_config ([`PreTrainedConfig`], *optional*): of the text tower, if it is not CLIP's: it says which tokens
            are a caption's own, and which ids random tokens are drawn from; in CLIP those below the mask's.
    """
    noise_draw, info_draw, action_draw, token_draw = uniforms[..., : input_ids.shape[1]].unbind(dim=1)
    valid = valid_tokens(input_ids, text_config)
    scores = torch.zeros(input_ids.shape, device=input_ids.device) if scores is None else scores
    noise_mask = valid & (noise_draw < masking.noise_probability(scores))
    prediction_mask = valid & (info_draw < masking.info_probability(scores))

    # a caption with nothing to predict would teach the decoder nothing
    nothing_chosen = valid.any(dim=1, keepdim=True) & ~prediction_mask.any(dim=1, keepdim=True)
    best = scores.masked_fill(~valid, -1).argmax(dim=1, keepdim=True)
    fallback = nothing_chosen & (torch.arange(input_ids.shape[1], device=input_ids.device) == best)
    prediction_mask = prediction_mask | fallback

    # 80 % mask, 10 % random token, 10 % unchanged
    low, high = random_ids(mask_token_id, text_config)
    random_tokens = (low + token_draw * (high - low)).long().clamp_max(high - 1)
    replacement = torch.where(action_draw < 0.9, random_tokens, input_ids)
    replacement = torch.where((action_draw < 0.8) | fallback, mask_token_id, replacement)
    prediction_input_ids = torch.where(prediction_mask, replacement, input_ids)
    if masking.in_place:
        return MaskedCaptions(prediction_input_ids, prediction_input_ids, prediction_mask, prediction_mask)
    return MaskedCaptions(
        noise_input_ids=torch.where(noise_mask, mask_token_id, input_ids),
        prediction_input_ids=prediction_input_ids,
        noise_mask=noise_mask,
        prediction_mask=prediction_mask,
    )
