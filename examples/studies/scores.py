"""Scores of caption tokens to compare with GASS.

Every score is high where a token is trusted, has shape `(B, T)`, and means something between BOS and EOS alone. A
`direction` is what the text embedding is multiplied with: the image's unit embedding for the cosine similarity.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modeling_gadms.token_scores_gadms import (
    cached_text_pass,
    eos_pass,
    minmax,
    pooling_matrix,
    scored_layers,
    split_heads,
)
from modeling_gadms.towers_gadms import eos_positions, valid_tokens


@torch.no_grad()
def contrast_direction(image_embeds: torch.Tensor, text_embeds: torch.Tensor, temperature: float) -> torch.Tensor:
    """What tells a caption's image from the batch's other images: `(B, D)` twice -> `(B, D)`.

    The image's unit embedding less that of the others, weighted by the softmax of their similarity to the caption.
    """
    images, texts = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    others = (texts @ images.T / temperature).fill_diagonal_(-torch.inf).softmax(dim=-1)
    return images - others @ images


def gradient_parts(
    text_model: nn.Module,
    text_projection: nn.Module,
    direction: torch.Tensor,
    input_ids: torch.Tensor,
    num_layers: int | None = None,
) -> dict[str, torch.Tensor]:
    """The parts that GASS is made of, signed and unscaled, as means over the last layers, and what they leave out.

    Returns:
        "attention" (Sa), "gradient" (Sg) and "product" (of which GASS is the min-max of the ReLU), and "evidence":
        `sum_heads A_h[e, j] <g_h, v_h[j]>` with no importance and no mean over heads, each head's part of the first
        order change of the similarity when EOS stops reading token `j`. Over all `j` of a layer it sums to `<g, a>`.
    """
    layers = text_model.encoder.layers
    num_layers = scored_layers(len(layers), num_layers, len(direction), len(input_ids))
    with torch.no_grad():
        eos, positions = eos_positions(input_ids), torch.arange(input_ids.shape[1], device=input_ids.device)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        at_eos, after_eos, valid = positions == eos[:, None], positions > eos[:, None], valid_tokens(input_ids)
        eos_hidden, kept = cached_text_pass(text_model, layers, num_layers, input_ids, rows, eos)
        layers = layers[-num_layers:]
        gradients, attentions = eos_pass(
            text_model, text_projection, layers, direction, eos_hidden, kept, at_eos, after_eos
        )
        pool = pooling_matrix(eos + 1, input_ids.shape[1])
        names = "attention", "gradient", "product", "evidence"
        parts = {name: torch.zeros(input_ids.shape, device=input_ids.device) for name in names}
        for layer, (queries, keys, values), gradient, attention in zip(
            layers, kept, gradients, attentions, strict=True
        ):
            importance = F.cosine_similarity(pool[rows, eos][:, None] @ queries, pool @ keys, dim=-1)
            gradient_score = minmax(importance, ~after_eos) * (values @ gradient[..., None]).squeeze(-1)
            attention = torch.where(valid, attention, 0.0)
            attention_score = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
            query, key, value, slope = (
                split_heads(tensor, layer.self_attn.head_dim)
                for tensor in (queries[rows, eos][:, None], keys, values, gradient[:, None])
            )
            logits = (query @ key.transpose(-1, -2)) * layer.self_attn.scale  # (B, H, 1, T)
            weights = logits.masked_fill(after_eos[:, None, None], -torch.inf).softmax(-1)
            evidence = (weights * (slope @ value.transpose(-1, -2))).sum(dim=1).squeeze(1)
            found = (attention_score, gradient_score, gradient_score * attention_score, evidence)
            for name, value in zip(parts, found, strict=True):
                parts[name] += value / num_layers
        # the gradient of a cosine does not depend on the length of `direction`; that of a product does
        length = direction.norm(dim=-1, keepdim=True)
        return {name: value if name == "attention" else value * length for name, value in parts.items()}
