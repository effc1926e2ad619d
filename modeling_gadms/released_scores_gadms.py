"""The token score as the released code computes it, to compare with the paper's; training does not use it.

How it departs from `token_scores_gadms.gradient_attention_scores`, the paper's recipe:

- the last `L` layers attend with a single head over the whole width, in the forward pass and so in the gradients too;
- attention is divided by the sum of the *gradient score* plus 1e-8, not by that of attention;
- layers are summed, not averaged (min-max takes that away again);
- pooling, that sum and the min-max of importance run over all positions up to the tower's context length: BOS, EOS and
  padding included;
- BOS, EOS and padding are set to 0, and only then min-max runs, over the whole batch at once.

A caption's scores thus depend on its padding and on the captions beside it.
"""

import torch
import torch.nn.functional as F

from .token_scores_gadms import eos_positions, scored_layers, valid_tokens

NUM_LAYERS = 8  # whatever the depth of the tower


@torch.compiler.disable  # autograd.grad inside a compiled forward breaks the graph anyway
def released_scores(text_model, text_projection, image_embeds, input_ids, num_layers=None):
    """Score every caption token against its image, by the released code's recipe.

    Captions are padded with id 0 to the context length first, as the released tokenizer does, because the recipe
    depends on it. Parameters receive no gradient, and the scores carry none.

    Args:
        text_model ([`CLIPTextModel`]): the text tower, causal.
        text_projection (`torch.nn.Linear`): its projection to the joint space.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, taken as constants.
        input_ids (`torch.Tensor` of shape `(B, T)`): captions, one for each image; EOS is the highest id.
        num_layers (`int`, *optional*): last text layers used; by default 8, or all where there are fewer.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]: 0 at BOS, EOS and padding; the highest of the batch is 1.

    Raises:
        ValueError: `num_layers` outside 1..layers of the tower, or a batch of images that is not that of the captions.
    """
    layers = text_model.encoder.layers
    num_layers = min(NUM_LAYERS, len(layers)) if num_layers is None else num_layers
    num_layers = scored_layers(len(layers), num_layers, len(image_embeds), len(input_ids))

    num_positions = input_ids.shape[1]
    valid = valid_tokens(input_ids)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(input_ids.device.type, enabled=False):
        # clones: inference tensors cannot enter a graph
        input_ids, image_embeds = input_ids.clone(), image_embeds.clone().detach().float()
        input_ids = F.pad(input_ids, (0, max(0, text_model.config.max_position_embeddings - num_positions)))
        rows, eos = torch.arange(len(input_ids), device=input_ids.device), eos_positions(input_ids)

        hidden_states = text_model.embeddings(input_ids)
        for layer in layers[:-num_layers]:
            hidden_states, _ = _attend(layer, hidden_states, layer.self_attn.num_heads)
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
            gradient_score = importance * (values.float() @ gradient[rows, eos].float()[..., None]).squeeze(-1)
            attention_score = attention[rows, eos].float() / (gradient_score.sum(dim=-1, keepdim=True) + 1e-8)
            total += gradient_score * attention_score
        return _minmax(torch.where(valid, F.relu(total[:, :num_positions]), 0.0))


def _attend(layer, hidden_states, num_heads):
    """One CLIP layer with `num_heads` heads: its tokens, and `(q, k, v, attention of the heads' mean, output)`."""
    normed, attention = layer.layer_norm1(hidden_states), layer.self_attn
    queries, keys, values = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    query, key, value = (
        tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tensor in (queries, keys, values)
    )  # (B, H, T, D / H)
    logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    weights = logits.masked_fill(later, -torch.inf).softmax(dim=-1)
    output = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
    hidden_states = hidden_states + attention.out_proj(output)
    hidden_states = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
    return hidden_states, (queries.detach(), keys.detach(), values.detach(), weights.detach().mean(dim=1), output)


def _pool(tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the tokens, and of the tokens averaged in pairs and interpolated back: `(B, T, D)` -> `(B, T, D)`."""
    pairs = F.avg_pool1d(tokens.transpose(1, 2), 2)
    return (tokens + F.interpolate(pairs, size=tokens.shape[1], mode="linear").transpose(1, 2)) / 2


def _minmax(values: torch.Tensor, dim=(0, 1)) -> torch.Tensor:
    """Scale to [0, 1] over the axes of `dim`; what is constant over them becomes 0."""
    low, high = values.amin(dim=dim, keepdim=True), values.amax(dim=dim, keepdim=True)
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
