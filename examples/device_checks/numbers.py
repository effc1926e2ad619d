"""What a device computes, in float32 and in bfloat16, beside the CPU in float32."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from studies.training_steps import make_batch

from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.losses_gadms import IGNORED, mtp_loss, sdm_loss, sigmoid_loss
from modeling_gadms.masking_gadms import DualMasking, first_true, mask_captions, most_to_predict
from modeling_gadms.token_scores_gadms import gradient_attention_scores
from modeling_gadms.towers_gadms import caption_tokens
from modeling_gadms.training.accumulation import plan_replays

# largest length of a difference, as a share of the length of what the CPU computes; masks may not differ at all
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
SCORE_BOUNDS = {"float32": 1e-2, "bfloat16": 0.25}  # their range is stretched to [0, 1], and the errors with it


class ScoredBefore(GADMSForPreTraining):
    """Draws its masks from scores that are given, so that both devices hide the same tokens."""

    given: torch.Tensor

    def score_captions(self, image_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        scores, self.given = self.given.split([len(input_ids), len(self.given) - len(input_ids)])
        return scores.to(input_ids.device)


def check_numbers(device: torch.device, config: GADMSConfig, lengths: list[int]) -> list[dict[str, Any]]:
    """A row for each part and precision: how far the device is from the CPU, and whether that is within bounds.

    Args:
        device: the device to check.
        config: of the model, whose weights are random.
        lengths: tokens of the captions, an even number of them.
    """
    torch.manual_seed(0)
    model = ScoredBefore(config).train()
    batch = make_batch(config, lengths)
    batch["person_ids"] = torch.arange(len(lengths)) // 2
    with torch.no_grad():
        embeds = model.gadms.get_image_features(batch["pixel_values"]).pooler_output
    scores = scores_both_ways(model, embeds, batch["input_ids"]).amax(dim=0)
    expected = dict(computed(model, batch, embeds, scores))
    on_device = copy.deepcopy(model).to(device)
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    rows = []
    for precision, low in (("float32", False), ("bfloat16", True)):
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            found = dict(computed(on_device, moved, embeds.to(device), scores.to(device)))
        for name, value in found.items():
            bound = {"masks": 0.0, "score": SCORE_BOUNDS[precision]}.get(name, BOUNDS[precision])
            difference = relative(value.cpu(), expected[name])
            rows.append(
                {
                    "part": name,
                    "precision": precision,
                    "difference": float(f"{difference:.2g}"),
                    "at most": bound,
                    "within": difference <= bound,
                }
            )
    return rows


def computed(
    model: ScoredBefore, batch: dict[str, torch.Tensor], image_embeds: torch.Tensor, scores: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of parts, and what they compute."""
    config, ids = model.config, batch["input_ids"]
    yield "score", scores_both_ways(model, image_embeds, ids)

    views = mask_captions(ids, scores, batch["mask_uniforms"], DualMasking(), config.mask_token_id, config.text_config)
    yield "masks", torch.stack([views.noise_input_ids, views.prediction_input_ids]).float()

    generator = torch.Generator().manual_seed(0)  # on the CPU, so that every device is given the same
    pairs = torch.randn(2, len(ids), config.projection_dim, generator=generator).to(ids.device).unbind()
    persons = batch["person_ids"]
    yield from with_gradient("SDM", lambda *both: sdm_loss(*both, persons), *pairs)
    yield from with_gradient("sigmoid loss", lambda *both: sigmoid_loss(*both, persons, persons, 0.1, -10.0), *pairs)

    tokens = torch.randn(*ids.shape, config.projection_dim, generator=generator).to(ids.device)
    context = torch.randn(len(ids), 9, config.projection_dim, generator=generator).to(ids.device)
    own = caption_tokens(ids, config.text_config)
    places = first_true(views.prediction_mask.flatten(), most_to_predict(*ids.shape, DualMasking()))
    labels = ids.masked_fill(~views.prediction_mask, IGNORED).flatten()[places]

    def prediction(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return mtp_loss(model.decoder(text, image, own, places), labels, views.prediction_mask.sum())

    yield from with_gradient("decoder and MTP", prediction, tokens, context)
    yield from step_gradient("step", model, batch, scores, chunks=1)
    yield from step_gradient("step in two chunks", model, batch, scores, chunks=2)


def scores_both_ways(model: GADMSForPreTraining, image_embeds: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Scores beside an image and beside its opposite, `(2, B, T)`: of random weights one may be 0 everywhere."""
    text = model.gadms.text_model, model.gadms.text_projection
    return torch.stack([gradient_attention_scores(*text, sign * image_embeds, ids) for sign in (1, -1)])


def with_gradient(
    name: str, loss: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """A loss, and its gradient with respect to its inputs."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    value = loss(*inputs)
    yield name, value.detach()
    yield f"{name}, gradient", torch.cat([part.flatten() for part in torch.autograd.grad(value, inputs)])


def step_gradient(
    name: str, model: ScoredBefore, batch: dict[str, torch.Tensor], scores: torch.Tensor, chunks: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The loss of a whole step, and its gradient with respect to every weight, in one piece or in chunks."""
    model.zero_grad()
    size = len(scores) // chunks
    parts = [{key: tensor.split(size)[part] for key, tensor in batch.items()} for part in range(chunks)]
    model.given = scores.repeat(1 if chunks == 1 else 2, 1)  # chunks are embedded, then run again
    replays = plan_replays(model, parts, DualMasking()) if chunks > 1 else [None]
    losses = []
    for part, replay in zip(parts, replays, strict=True):
        loss = model(**part, chunk=None if replay is None else replay.chunk).loss / chunks
        loss.backward()
        losses.append(loss.detach())
    yield name, torch.stack(losses).sum()
    yield f"{name}, gradient", torch.cat([weight.grad.flatten() for weight in model.parameters()])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference as a share of the length of what is expected."""
    return ((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)).item()
