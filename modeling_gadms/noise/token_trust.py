"""Numbers for the tokens of captions, high where a token is trusted: published scores, and what is near them.

Every score takes pixels and ids, one caption per image, has shape `(B, T)`, and means something between BOS and EOS
alone.
"""

import math
import zlib

import torch
import torch.nn.functional as F

from ..modeling_gadms import GADMSForPreTraining, GADMSModel, pooled
from ..token_scores_gadms import cached_text_pass, eos_pass, layers_of, split_heads
from ..towers_gadms import eos_positions, is_causal, seen_tokens, valid_tokens
from .patch_evidence import PatchEvidence

CLIP4DM_LAYERS = 3  # the last ones
CLIP4DM_PREFIX = "A photo depicts "
PASSES = 4  # of the decoder, each with a quarter of the words masked


def random_scores(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Chance, the same for the same captions."""
    generator = torch.Generator().manual_seed(zlib.crc32(input_ids.cpu().numpy().tobytes()))
    return torch.rand(input_ids.shape, generator=generator).to(input_ids.device)


@torch.no_grad()
def image_cosines(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Cosine of each token to the image."""
    image = F.normalize(pooled(model.get_image_features(pixel_values, return_dict=True)), dim=-1)
    return (F.normalize(model.project_text_tokens(input_ids), dim=-1) @ image[..., None])[..., 0]


@torch.no_grad()
def patch_cosines(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The score of noise-aware masking (NAM): cosine of each token to the nearest patch."""
    image_tokens = model.project_image_tokens(model.vision_model(pixel_values).last_hidden_state)
    return nearest_patch(model.project_text_tokens(input_ids), image_tokens)


def nearest_patch(text_tokens: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
    """Cosine to the nearest image patch: `(B, T, D)`, `(B, 1 + patches, D)` with CLS -> `(B, T)`."""
    texts, patches = F.normalize(text_tokens, dim=-1), F.normalize(image_tokens[:, 1:], dim=-1)
    return (texts @ patches.transpose(1, 2)).amax(dim=-1)


def gass(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The paper's score."""
    return model.token_scores(pixel_values, input_ids)


def released_gass(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The released code's score, for CLIP's text tower alone; it depends on the rest of the batch."""
    return model.token_scores(pixel_values, input_ids, recipe="released")


def masked_drops(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """How far the match falls without each token."""
    return model.word_contributions(pixel_values, input_ids)


def clip4dm(model: GADMSModel, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """CLIP4DM (arXiv 2412.18404): signed gradient times attention at EOS, mean over heads and the last three layers.

    With `A[h, e, j]` the attention of EOS to token `j` in head `h`, it is the mean of `A * d cos(image, text) / d A`;
    below 0 where the match is better without the token. No ReLU is taken: that would drop what speaks against.

    Raises:
        ValueError: the text tower is bidirectional, so that more than EOS's own attention counts.
    """
    text_model, config = model.text_model, model.text_model.config
    if not is_causal(config):
        raise ValueError("clip4dm is for causal text towers such as CLIP's")
    layers = layers_of(text_model)
    last = layers[-CLIP4DM_LAYERS:]
    with torch.no_grad():
        image_embeds = pooled(model.get_image_features(pixel_values, return_dict=True))
        rows, eos = torch.arange(len(input_ids), device=input_ids.device), eos_positions(input_ids, config)
        at_eos = torch.arange(input_ids.shape[1], device=input_ids.device) == eos[:, None]
        after_eos = ~seen_tokens(input_ids, config)
        eos_hidden, kept = cached_text_pass(text_model, layers, len(last), input_ids, rows, eos)
        found = eos_pass(text_model, model.text_projection, last, image_embeds, eos_hidden, kept, at_eos, after_eos)
        total = torch.zeros(input_ids.shape, device=input_ids.device)
        for layer, (queries, keys, values), gradient in zip(last, kept, found[0], strict=True):
            parts = queries[rows, eos][:, None], keys, values, gradient[:, None]
            query, key, value, slope = (split_heads(part, layer.self_attn.head_dim) for part in parts)
            logits = (query @ key.transpose(-1, -2)) * layer.self_attn.scale  # (B, H, 1, T)
            attention = logits.masked_fill(after_eos[:, None, None], -torch.inf).softmax(dim=-1)
            # the similarity hangs on A[h, e, j] by <slope of the attention's output, value of j>
            total += (attention * (slope @ value.transpose(-1, -2))).mean(dim=1)[:, 0] / len(last)
        return total


@torch.no_grad()
def patch_concentration(evidence: PatchEvidence, keys: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Less the entropy, in nats, of where in its image patch evidence finds each token; a sure one has one place.

    Args:
        evidence ([`PatchEvidence`]): trained.
        keys (`torch.Tensor` of shape `(B, S, D)`): of the images, from `PatchEvidence.keys`.
        input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image.
    """
    scores = torch.zeros(input_ids.shape, device=input_ids.device)
    rows, places = valid_tokens(input_ids, evidence.tower.config.text_config).nonzero(as_tuple=True)
    queries = evidence.queries(input_ids, rows, places)
    for row in range(len(keys)):
        own = rows == row
        shares = (queries[own] @ keys[row].T / math.sqrt(keys.shape[-1] / 2)).log_softmax(dim=-1)  # (N, S)
        scores[row, places[own]] = (shares.exp() * shares).sum(dim=-1)
    return scores


@torch.no_grad()
def decoder_surprise(
    model: GADMSForPreTraining,
    image_tokens: torch.Tensor,
    input_ids: torch.Tensor,
    passes: torch.Tensor,
    num_passes: int = PASSES,
) -> torch.Tensor:
    """`log p(token) - log p(best token)` by the decoder, at most 0, each token masked in one pass out of a few.

    Args:
        model ([`GADMSForPreTraining`]): with a trained decoder.
        image_tokens (`torch.Tensor` of shape `(B, 1 + patches, D)`): projected tokens of the image.
        passes (`torch.Tensor` of shape `(B, T)`): the pass in which each token is masked, 0 to `num_passes - 1`; a
            token that is not asked about has -1.
    """
    config = model.config.text_config
    own, valid = seen_tokens(input_ids, config), valid_tokens(input_ids, config)
    surprise = torch.zeros(input_ids.shape, device=input_ids.device)
    for number in range(num_passes):
        hidden = valid & (passes == number)
        masked = torch.where(hidden, model.config.mask_token_id, input_ids)
        logits = model.decoder(model.gadms.project_text_tokens(masked), image_tokens, own, hidden).float()
        chosen = logits.gather(1, input_ids[hidden][:, None]).squeeze(1)
        surprise[hidden] = chosen - logits.amax(dim=1)
    return surprise
