"""A training step of GA-DMS, its parts, and the steps it is compared with, each on one batch, forward and backward."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.losses_gadms import sdm_loss
from modeling_gadms.masking_gadms import DualMasking, draw_uniforms, mask_captions
from modeling_gadms.released_scores_gadms import released_scores
from modeling_gadms.token_scores_gadms import gradient_attention_scores
from modeling_gadms.towers_gadms import caption_tokens, eos_positions, random_ids, whole_captions


def make_batch(config: GADMSConfig, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise for images, and captions of random words with these numbers of tokens, what frames them included."""
    generator = torch.Generator().manual_seed(seed)
    text = config.text_config
    low, high = random_ids(config.mask_token_id, text)
    input_ids = torch.randint(max(low, 1), high, (len(lengths), max(lengths)), generator=generator)
    for ids, length in zip(input_ids, lengths, strict=True):
        ids[length:] = text.pad_token_id
        if text.bos_token_id is not None:
            ids[0] = text.bos_token_id
        if text.eos_token_id is not None:
            ids[length - 1] = text.eos_token_id
    return {
        "pixel_values": torch.randn(len(lengths), 3, *config.vision_config.image_size, generator=generator),
        "input_ids": input_ids,
        "mask_uniforms": draw_uniforms(len(lengths), text.max_position_embeddings, generator),
    }


def pad_captions(batch: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """The same batch, with captions padded to `width`."""
    return {**batch, "input_ids": F.pad(batch["input_ids"], (0, width - batch["input_ids"].shape[1]))}


def gadms_step(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> None:
    model(**batch).loss.backward()


def checkpointed_step(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> None:
    model.activation_checkpointing_enable()
    gadms_step(model, batch)
    model.activation_checkpointing_disable()


def bfloat16_step(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()


def plain_step(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> None:
    """A CLIP step with the same towers: one view of the caption, and the contrastive loss."""
    image = F.normalize(model.gadms.get_image_features(batch["pixel_values"]).pooler_output, dim=-1)
    text = F.normalize(model.gadms.get_text_features(batch["input_ids"]).pooler_output, dim=-1)
    image_text_contrastive_loss(text @ image.T / 0.07).backward()


@contextmanager
def a_backward_pass_for_each() -> Iterator[None]:
    """Within, `torch.autograd.grad` starts again from the loss for each input, as the released scoring does."""
    at_once = torch.autograd.grad

    def one_by_one(loss: torch.Tensor, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        return [at_once(loss, one, retain_graph=True)[0] for one in inputs]

    with mock.patch.object(torch.autograd, "grad", one_by_one):
        yield


def released_loss(
    model: GADMSForPreTraining,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    mask_uniforms: torch.Tensor,
    mtp_weight: float = 0.4,
) -> torch.Tensor:
    """The released code's schedule, with the masks and weights of this project's recipe.

    Captions are padded to the context length; scores take a forward pass of the last layers with a single head and a
    backward pass for each of them; the views go through the text tower one after the other; the decoder attends
    padding, and its vocabulary layer runs on every position.
    """
    gadms, config = model.gadms, model.config
    padding = config.text_config.max_position_embeddings - input_ids.shape[1]
    input_ids = F.pad(input_ids, (0, padding))
    image_tokens = gadms.project_image_tokens(gadms.vision_model(pixel_values).last_hidden_state)
    with a_backward_pass_for_each():
        scores = released_scores(gadms.text_model, gadms.text_projection, image_tokens[:, 0], input_ids)
    views = mask_captions(input_ids, scores, mask_uniforms, DualMasking(), config.mask_token_id)
    noise_tokens = gadms.text_projection(gadms.text_model(views.noise_input_ids).last_hidden_state)
    text_tokens = gadms.text_projection(gadms.text_model(views.prediction_input_ids).last_hidden_state)
    rows = torch.arange(len(input_ids))
    sdm = sdm_loss(image_tokens[:, 0], noise_tokens[rows, eos_positions(input_ids)], rows, config.temperature)
    everywhere = torch.ones_like(input_ids, dtype=torch.bool)
    logits = model.decoder(text_tokens, image_tokens, everywhere, everywhere)
    labels = input_ids.masked_fill(~views.prediction_mask, -100)  # cross_entropy passes these over
    return sdm + mtp_weight * F.cross_entropy(logits, labels.flatten())


def parts_of_step(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> dict:
    """Each part of [`gadms_step`] as a function without arguments, and last the text passes in two.

    Every part starts from what it would be given in the step, and ends in a sum for a loss.
    """
    gadms, text_config = model.gadms, model.config.text_config
    input_ids = whole_captions(batch["input_ids"], text_config)
    with torch.no_grad():
        pairs = model.encode_pairs(**batch)
    image_tokens, text_tokens = (tokens.clone().requires_grad_() for tokens in (pairs.image_tokens, pairs.text_tokens))
    embeds = [one.clone().requires_grad_() for one in (pairs.image_embeds, pairs.text_embeds)]
    views = (pairs.views.noise_input_ids, pairs.views.prediction_input_ids)
    own_tokens = caption_tokens(input_ids, text_config)

    def image_tower() -> None:
        tokens = gadms.vision_model(batch["pixel_values"]).last_hidden_state
        gadms.project_image_tokens(tokens).sum().backward()

    def text_pass(input_ids: torch.Tensor) -> torch.Tensor:
        return gadms.project_text_tokens(input_ids).sum()

    def token_scores() -> None:
        gradient_attention_scores(gadms.text_model, gadms.text_projection, pairs.image_embeds, input_ids)

    def decoder() -> None:
        logits = model.decoder(text_tokens, image_tokens, own_tokens, pairs.views.prediction_mask)
        F.cross_entropy(logits, input_ids[pairs.views.prediction_mask]).backward()

    return {
        "image tower": image_tower,
        "text tower, both views": lambda: text_pass(torch.cat(views)).backward(),
        "token scores": token_scores,
        "decoder and MTP": decoder,
        "SDM": lambda: sdm_loss(*embeds, torch.arange(len(input_ids)), model.config.temperature).backward(),
        "text tower, view after view": lambda: sum(map(text_pass, views)).backward(),
    }
