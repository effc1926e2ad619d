"""The token score as the released code computes it, for comparison with the paper's; training does not use it.

It differs from `token_scores_gadms.gradient_attention_scores`, the paper's recipe:

- the last `L` layers attend with a single head over the whole width, in the forward pass and so in the gradients too;
- attention is divided by the sum of the *gradient score* plus 1e-8, not by its own sum;
- layers are summed, not averaged (which the final min-max makes irrelevant);
- pooling, that sum and the min-max of importance run over all positions up to the tower's context length, including
  BOS, EOS and padding;
- BOS, EOS and padding are then set to 0, before the last min-max, which runs over the whole batch at once.

A caption's scores thus depend on its padding and on the other captions of the batch.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .token_scores_gadms import finish_layer, layers_of, project_qkv, scored_layers, split_heads, without_dropout
from .towers_gadms import CLIP, eos_positions, kind_of, valid_tokens

NUM_LAYERS = 8  # whatever the depth of the tower


@torch.compiler.disable  # autograd.grad inside a compiled forward breaks the graph anyway
def released_scores(
    text_model: CLIPTextModel,
    text_projection: nn.Module,
    image_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    num_layers: int | None = None,
) -> torch.Tensor:
    """Score every caption token against its image, by the released code's recipe.

    Captions are first padded with id 0 to the context length, as the released tokenizer does, because the recipe
    depends on it. Parameters receive no gradient, and the scores carry none.

    Args:
        text_model ([`CLIPTextModel`]): the text tower, causal.
        text_projection (`torch.nn.Linear`): projection to the joint space.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, taken as constants.
        input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image; EOS is the highest id.
        num_layers (`int`, *optional*): last text layers used; by default 8, or all if there are fewer.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]; 0 at BOS, EOS and padding, 1 at the highest of the batch.

    Raises:
        ValueError: the tower is not CLIP's or has no `num_layers` layers, or images and captions differ in number.
    """
    if kind_of(text_model.config) != CLIP:
        raise ValueError('the released recipe is for CLIP\'s text tower alone; score other towers by recipe="paper"')
    layers = layers_of(text_model)
    default = min(NUM_LAYERS, len(layers))
    num_layers = scored_layers(len(layers), num_layers, len(image_embeds), len(input_ids), default)

    num_positions = input_ids.shape[1]
    valid = valid_tokens(input_ids)
    plain = torch.autocast(input_ids.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain, without_dropout(text_model, text_projection):
        # clones: inference tensors cannot enter a graph
        input_ids, image_embeds = input_ids.clone(), image_embeds.clone().detach().float()
        padding = max(0, text_model.config.max_position_embeddings - num_positions)
        input_ids = F.pad(input_ids, (0, padding))
        rows = torch.arange(len(input_ids), device=input_ids.device)
        eos = eos_positions(input_ids)

        hidden_states = text_model.embeddings(input_ids)
        for layer in layers[:-num_layers]:
            hidden_states, _ = _attend(layer, hidden_states, layer.self_attn.num_heads)

        # gradients are wanted from here on
        hidden_states, kept = hidden_states.detach().requires_grad_(), []
        for layer in layers[-num_layers:]:
            hidden_states, parts = _attend(layer, hidden_states, num_heads=1)
            kept.append(parts)
        text_embeds = text_projection(text_model.final_layer_norm(hidden_states[rows, eos]))
        similarity = F.cosine_similarity(image_embeds, text_embeds.float(), dim=-1)
        gradients = torch.autograd.grad(similarity.sum(), [output for *_, output in kept])

    with torch.inference_mode(False), torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
        total = torch.zeros(input_ids.shape, device=input_ids.device)
        for (queries, keys, values, attention, _), gradient in zip(kept, gradients, strict=True):
            pooled_query = _pool(queries.float())[rows, eos][:, None]
            importance = _minmax(F.cosine_similarity(pooled_query, _pool(keys.float()), dim=-1), dim=-1)  # (B, T)
            products = (values.float() @ gradient[rows, eos].float()[..., None]).squeeze(-1)
            gradient_score = importance * products
            attention_score = attention[rows, eos].float() / (gradient_score.sum(dim=-1, keepdim=True) + 1e-8)
            total += gradient_score * attention_score
        return _minmax(torch.where(valid, F.relu(total[:, :num_positions]), 0.0))


def _attend(
    layer: CLIPEncoderLayer, hidden_states: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """One CLIP layer with `num_heads` heads.

    Returns:
        The tokens, and `(queries, keys, values, attention averaged over heads, attention output)`.
    """
    queries, keys, values = project_qkv(layer, hidden_states)
    head_dim = queries.shape[-1] // num_heads
    query, key, value = (split_heads(each, head_dim) for each in (queries, keys, values))

    logits = (query @ key.transpose(-1, -2)).float()
    logits = logits * head_dim**-0.5
    later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    weights = logits.masked_fill(later, -torch.inf).softmax(dim=-1)
    output = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)

    hidden_states = finish_layer(layer, hidden_states, output)
    attention = weights.detach().mean(dim=1)
    return hidden_states, (queries.detach(), keys.detach(), values.detach(), attention, output)


def _pool(tokens: torch.Tensor) -> torch.Tensor:
    """Average the tokens with the tokens pooled in pairs and interpolated back: `(B, T, D)` -> `(B, T, D)`."""
    pairs = F.avg_pool1d(tokens.transpose(1, 2), 2)
    return (tokens + F.interpolate(pairs, size=tokens.shape[1], mode="linear").transpose(1, 2)) / 2


def _minmax(values: torch.Tensor, dim: int | tuple[int, ...] = (0, 1)) -> torch.Tensor:
    """Scale to [0, 1] over the axes `dim`; constant values become 0."""
    low, high = values.amin(dim=dim, keepdim=True), values.amax(dim=dim, keepdim=True)
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
