"""The gradient-attention similarity score (GASS): how much each caption token carried an image-text match.

For one pair, with `e` the position of EOS, and for each of the last `L` layers of the text tower (paper, section 3.2):

    g    = d cos(v_cls, t_eos) / d a[e]                 a = attention output before `out_proj`
    w_j  = minmax_j cos(MSP(q)[e], MSP(k)[j])           MSP = multi-scale pooling along the caption
    Sg_j = w_j * <g, v_j>
    Sa_j = A[e, j] / sum_valid A[e, j']                 A = attention probabilities, mean over heads
    S    = ReLU(mean over layers of Sg * Sa), scaled to [0, 1] over the caption's valid tokens

The text tower is causal and EOS is a caption's last token, so the similarity depends on `a[e]` through EOS's own
residual stream alone. One pass without gradients keeps `k` and `v` of every token; then EOS alone walks through the
last layers again with gradients, like one step of decoding with a cache, and one `autograd.grad` gives every `g`.
"""

import torch
import torch.nn.functional as F


def eos_positions(input_ids: torch.Tensor) -> torch.Tensor:
    """Position of EOS, the highest id of the vocabulary, in each row: `(B, T)` ids -> `(B,)` int64."""
    return input_ids.argmax(dim=-1)


def valid_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """True at the tokens between BOS and EOS: `(B, T)` ids -> `(B, T)` bool."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions > 0) & (positions < eos_positions(input_ids)[:, None])


def minmax(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Scale each row of `values` `(B, T)` to [0, 1] over its kept positions; the others, and constant rows, are 0."""
    low = values.masked_fill(~keep, torch.inf).amin(dim=-1, keepdim=True)
    high = values.masked_fill(~keep, -torch.inf).amax(dim=-1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(keep & (high > low), (values - low) / spread, 0.0)


def pooling_matrix(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Multi-scale pooling (MSP) over each caption's own tokens, as one matrix per caption.

    MSP is the mean of the tokens themselves (scale 1) and of the tokens average-pooled in pairs and linearly
    interpolated back to the caption's length (scale 2, half-pixel centres; an odd last token is left out).

    Args:
        lengths (`torch.Tensor` of shape `(B,)`): tokens of each caption, BOS and EOS included; at least 2.
        width (`int`): padded length `T`.

    Returns:
        `torch.Tensor` of shape `(B, T, T)`, float32: `matrix @ x` pools `x` of shape `(B, T, D)`. Rows and columns
        past a caption's length are zero outside the diagonal.
    """
    positions = torch.arange(width, device=lengths.device)
    pairs = (lengths // 2)[:, None]
    source = ((positions + 0.5) * pairs / lengths[:, None] - 0.5).clamp_min(0)
    left = torch.minimum(source.floor().long(), pairs - 1)
    right = torch.minimum(left + 1, pairs - 1)
    weight = (source - left).clamp(0, 1)[..., None]
    pair_of = (positions // 2)[None, None]
    interpolation = (1 - weight) * (left[..., None] == pair_of) + weight * (right[..., None] == pair_of)
    inside = (positions < lengths[:, None])[..., None] & (positions < 2 * pairs)[:, None]
    return 0.5 * torch.eye(width, device=lengths.device) + 0.5 * 0.5 * interpolation * inside


def split_heads(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    return tensor.unflatten(-1, (-1, head_dim)).transpose(-3, -2)  # (B, T, D) -> (B, H, T, head_dim)


def project_qkv(layer, hidden_states):
    """Queries, keys and values of one CLIP layer, all heads side by side."""
    normed = layer.layer_norm1(hidden_states)
    attention = layer.self_attn
    return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)


def finish_layer(layer, hidden_states, attention_output):
    """The rest of a CLIP layer, from the attention output before `out_proj`."""
    hidden_states = hidden_states + layer.self_attn.out_proj(attention_output)
    return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))


def scored_layers(depth: int, num_layers: int | None, num_images: int, num_captions: int) -> int:
    """How many of the last text layers are used, two thirds of `depth` by default; refuses what no recipe can score.

    Raises:
        ValueError: `num_layers` outside 1..`depth`, or a batch of images that is not that of the captions.
    """
    num_layers = round(depth * 2 / 3) if num_layers is None else num_layers
    if not 1 <= num_layers <= depth:
        raise ValueError(f"num_layers must be between 1 and {depth}, the depth of the text tower; got {num_layers}")
    if num_images != num_captions:
        raise ValueError(f"{num_images} images for {num_captions} captions; scores need pairs")
    return num_layers


@torch.compiler.disable  # autograd.grad inside a compiled forward breaks the graph anyway
def gradient_attention_scores(text_model, text_projection, image_embeds, input_ids, num_layers=None):
    """Score every caption token against its image.

    Works under `torch.no_grad()`, `torch.inference_mode()` and autocast. Parameters receive no gradient, the scores
    carry none, and neither padding nor the rest of the batch enters them.

    Args:
        text_model ([`CLIPTextModel`]): the text tower, causal.
        text_projection (`torch.nn.Linear`): its projection to the joint space.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, taken as constants.
        input_ids (`torch.Tensor` of shape `(B, T)`): captions, one for each image; EOS is the highest id.
        num_layers (`int`, *optional*): last text layers used; by default two thirds of them (the paper's 8 of 12).

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]: 0 at BOS, EOS and padding, and throughout a caption whose
        raw scores are all equal (a caption of one word, for example).

    Raises:
        ValueError: `num_layers` outside 1..layers of the tower, or a batch of images that is not that of the captions.
    """
    layers = text_model.encoder.layers
    num_layers = scored_layers(len(layers), num_layers, len(image_embeds), len(input_ids))

    with torch.inference_mode(False), torch.no_grad():
        input_ids, image_embeds = input_ids.clone(), image_embeds.clone()  # inference tensors cannot enter a graph
        eos = eos_positions(input_ids)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        eos_hidden, kept = cached_text_pass(text_model, layers, num_layers, input_ids, rows, eos)
        at_eos = F.one_hot(eos, input_ids.shape[1]).bool()
        after_eos = torch.arange(input_ids.shape[1], device=input_ids.device) > eos[:, None]
        gradients, attentions = eos_pass(
            text_model, text_projection, layers[-num_layers:], image_embeds, eos_hidden, kept, at_eos, after_eos
        )
        valid = valid_tokens(input_ids)
        pool = pooling_matrix(eos + 1, input_ids.shape[1])
        total = torch.zeros(input_ids.shape, device=input_ids.device)
        with torch.autocast(input_ids.device.type, enabled=False):
            for (queries, keys, values), gradient, attention in zip(kept, gradients, attentions, strict=True):
                pooled_query = pool[rows, eos][:, None] @ queries.float()  # (B, 1, D)
                importance = F.cosine_similarity(pooled_query, pool @ keys.float(), dim=-1)
                importance = minmax(importance, ~after_eos)
                gradient_score = importance * (values.float() @ gradient.float()[..., None]).squeeze(-1)
                attention = torch.where(valid, attention.float(), 0.0)
                attention_score = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
                total += gradient_score * attention_score
            return minmax(F.relu(total / num_layers), valid)


def cached_text_pass(text_model, layers, num_layers, input_ids, rows, eos):
    """Whole captions through the tower: EOS's state entering the last `num_layers` layers, and their q, k, v."""
    hidden_states = text_model.embeddings(input_ids)
    kept = []
    for index, layer in enumerate(layers):
        queries, keys, values = project_qkv(layer, hidden_states)
        if index == len(layers) - num_layers:
            eos_hidden = hidden_states[rows, eos]
        if index >= len(layers) - num_layers:
            kept.append((queries, keys, values))
        if index == len(layers) - 1:
            break  # what the last layer makes of the tokens is not needed
        heads = [split_heads(tensor, layer.self_attn.head_dim) for tensor in (queries, keys, values)]
        attention_output = F.scaled_dot_product_attention(*heads, is_causal=True, scale=layer.self_attn.scale)
        hidden_states = finish_layer(layer, hidden_states, attention_output.transpose(1, 2).flatten(2))
    return eos_hidden, kept


def eos_pass(text_model, text_projection, layers, image_embeds, eos_hidden, kept, at_eos, after_eos):
    """EOS alone through `layers` with gradients: dSIM/da and EOS's attention row (mean over heads) of each layer."""
    outputs, attentions = [], []
    with torch.enable_grad():
        hidden_states = eos_hidden.detach().requires_grad_()[:, None]  # (B, 1, D)
        for layer, (_, keys, values) in zip(layers, kept, strict=True):
            query, own_key, own_value = project_qkv(layer, hidden_states)
            # EOS's own key and value depend on the layers below, so they are the live ones, not the kept ones
            keys = torch.where(at_eos[..., None], own_key, keys)
            values = torch.where(at_eos[..., None], own_value, values)
            query, keys, values = (split_heads(tensor, layer.self_attn.head_dim) for tensor in (query, keys, values))
            logits = (query @ keys.transpose(-1, -2)).float() * layer.self_attn.scale
            attention = logits.masked_fill(after_eos[:, None, None], -torch.inf).softmax(-1)  # (B, H, 1, T)
            output = (attention.to(values.dtype) @ values).transpose(1, 2).flatten(2)
            outputs.append(output)
            attentions.append(attention.detach().mean(dim=1).squeeze(1))
            hidden_states = finish_layer(layer, hidden_states, output)
        text_embeds = text_projection(text_model.final_layer_norm(hidden_states)).squeeze(1)
        similarity = F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=-1)
        gradients = torch.autograd.grad(similarity.sum(), outputs)
    return [gradient.squeeze(1) for gradient in gradients], attentions
