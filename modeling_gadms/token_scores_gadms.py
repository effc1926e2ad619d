"""The gradient-attention similarity score (GASS): the signal that pre-training draws its masks from.

For one pair, with `e` the position of EOS, and for each of the last `L` layers of the text tower (paper, section 3.2):

    g    = d cos(v_cls, t_eos) / d a[e]                 a = attention output before `out_proj`
    w_j  = minmax_j cos(MSP(q)[e], MSP(k)[j])           MSP = multi-scale pooling along the caption
    Sg_j = w_j * <g, v_j>
    Sa_j = A[e, j] / sum_valid A[e, j']                 A = attention probabilities, mean over heads
    S    = ReLU(mean over layers of Sg * Sa), scaled to [0, 1] over the caption's valid tokens

The text tower is causal and EOS is a caption's last token, so the similarity depends on `a[e]` only through EOS's own
residual stream. One pass without gradients keeps `k` and `v` of every token; then EOS alone passes through the last
layers again with gradients, like one step of decoding with a cache, and one `autograd.grad` gives every `g`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


def eos_positions(input_ids: torch.Tensor) -> torch.Tensor:
    """Position of EOS, the highest id of the vocabulary, in each row: `(B, T)` ids -> `(B,)` int64."""
    return input_ids.argmax(dim=-1)


def valid_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """True at the tokens between BOS and EOS: `(B, T)` ids -> `(B, T)` bool."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions > 0) & (positions < eos_positions(input_ids)[:, None])


def refuse_left_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
    """Stop at captions that are not padded on the right, or whose own tokens a mask hides: the towers ignore masks.

    Compiled and exported graphs are not checked, for the check would cut them in two.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): token ids.
        attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): not 0 at a caption's own tokens.

    Raises:
        ValueError: padding stands before a caption, the mask hides one of its tokens, or has another shape.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or input_ids.shape[-1] < 2:
        return
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)} but input_ids {tuple(input_ids.shape)}; both are "
            "(captions, tokens)"
        )
    eos = eos_positions(input_ids)
    # padding is id 0, as here, or EOS, as in CLIP; neither begins a caption
    misplaced = (eos == 0) | (input_ids[:, 0] == 0)
    if attention_mask is not None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        misplaced |= ((attention_mask == 0) & (positions <= eos[:, None])).any(dim=-1)
    if misplaced.any():
        row = int(misplaced.nonzero()[0])
        raise ValueError(
            f"caption {row} is padded on the left, or its mask hides tokens before EOS: captions stand at the left "
            'and are padded on the right; prepare them with the model\'s own processor and padding_side="right"'
        )


def minmax(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Scale each row of `(B, T)` values to [0, 1] over its kept positions; other positions and constant rows are 0."""
    low = values.masked_fill(~keep, torch.inf).amin(dim=-1, keepdim=True)
    high = values.masked_fill(~keep, -torch.inf).amax(dim=-1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(keep & (high > low), (values - low) / spread, 0.0)


def pooling_matrix(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Multi-scale pooling (MSP) over each caption's own tokens, as one matrix per caption.

    MSP averages two scales: the tokens themselves, and the tokens average-pooled in pairs and linearly interpolated
    back to the caption's length (half-pixel centres; an odd last token is left out).

    Args:
        lengths (`torch.Tensor` of shape `(B,)`): tokens of each caption, BOS and EOS included; at least 2.
        width (`int`): padded length `T`.

    Returns:
        `torch.Tensor` of shape `(B, T, T)`, float32: `matrix @ x` pools `x` of shape `(B, T, D)`. Rows and columns
        past a caption's length are zero outside the diagonal.
    """
    positions = torch.arange(width, device=lengths.device)
    pairs = (lengths // 2)[:, None]

    # each position lies between two pairs, at a distance of `weight` from the left one
    source = ((positions + 0.5) * pairs / lengths[:, None] - 0.5).clamp_min(0)
    left = torch.minimum(source.floor().long(), pairs - 1)
    right = torch.minimum(left + 1, pairs - 1)
    weight = (source - left).clamp(0, 1)[..., None]

    # rows are positions, columns the tokens of the two pairs, each token with half the weight of its pair
    pair_of = (positions // 2)[None, None]
    from_left = (1 - weight) * (left[..., None] == pair_of)
    from_right = weight * (right[..., None] == pair_of)
    interpolation = from_left + from_right
    inside = (positions < lengths[:, None])[..., None] & (positions < 2 * pairs)[:, None]

    same_scale = torch.eye(width, device=lengths.device)
    return 0.5 * same_scale + 0.5 * 0.5 * interpolation * inside


def split_heads(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`(B, T, D)` -> `(B, H, T, head_dim)`."""
    return tensor.unflatten(-1, (-1, head_dim)).transpose(-3, -2)


def layers_of(text_model: CLIPTextModel) -> list[CLIPEncoderLayer]:
    """The layers of the text tower, from the first."""
    return cast(list[CLIPEncoderLayer], list(text_model.encoder.layers))


def project_qkv(
    layer: CLIPEncoderLayer, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of one CLIP layer, all heads side by side."""
    normed = layer.layer_norm1(hidden_states)
    attention = layer.self_attn
    return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)


def finish_layer(layer: CLIPEncoderLayer, hidden_states: torch.Tensor, attention_output: torch.Tensor) -> torch.Tensor:
    """The rest of a CLIP layer, given the attention output before `out_proj`."""
    hidden_states = hidden_states + layer.self_attn.out_proj(attention_output)
    return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))


def scored_layers(depth: int, num_layers: int | None, num_images: int, num_captions: int) -> int:
    """Number of last text layers to use, by default two thirds of `depth`.

    Raises:
        ValueError: `num_layers` is outside 1..`depth`, or images and captions differ in number.
    """
    num_layers = round(depth * 2 / 3) if num_layers is None else num_layers
    if not 1 <= num_layers <= depth:
        raise ValueError(f"num_layers must be between 1 and {depth}, the depth of the text tower; got {num_layers}")
    if num_images != num_captions:
        raise ValueError(f"{num_images} images for {num_captions} captions; give one image per caption")
    return num_layers


@contextmanager
def without_dropout(*modules: nn.Module) -> Iterator[None]:
    """Inside, modules run as in evaluation: adapters drop nothing from what is scored, in either pass."""
    active = [part for module in modules for part in module.modules() if part.training]
    for part in active:
        part.training = False
    try:
        yield
    finally:
        for part in active:
            part.training = True


@torch.compiler.disable  # autograd.grad inside a compiled forward breaks the graph anyway
def gradient_attention_scores(
    text_model: CLIPTextModel,
    text_projection: nn.Module,
    image_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    num_layers: int | None = None,
) -> torch.Tensor:
    """Score every caption token against its image.

    Works under `torch.no_grad()`, `torch.inference_mode()` and autocast. Parameters receive no gradient and the scores
    carry none; they depend neither on padding nor on the rest of the batch.

    Args:
        text_model ([`CLIPTextModel`]): the text tower, causal.
        text_projection (`torch.nn.Linear`): projection to the joint space.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, taken as constants.
        input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image; EOS is the highest id.
        num_layers (`int`, *optional*): last text layers used; by default two thirds of them (the paper's 8 of 12).

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]; 0 at BOS, EOS and padding, and throughout a caption whose
        raw scores are all equal (a caption of one word, for example).

    Raises:
        ValueError: the tower has no `num_layers` layers, or images and captions differ in number.
    """
    layers = layers_of(text_model)
    num_layers = scored_layers(len(layers), num_layers, len(image_embeds), len(input_ids))

    with torch.inference_mode(False), torch.no_grad(), without_dropout(text_model, text_projection):
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
                products = (values.float() @ gradient.float()[..., None]).squeeze(-1)  # <g, v_j>
                gradient_score = importance * products

                attention = torch.where(valid, attention.float(), 0.0)
                attention_score = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
                total += gradient_score * attention_score
            return minmax(F.relu(total / num_layers), valid)


def cached_text_pass(
    text_model: CLIPTextModel,
    layers: Sequence[CLIPEncoderLayer],
    num_layers: int,
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    eos: torch.Tensor,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Pass whole captions through the tower.

    Returns:
        EOS's state on entering the last `num_layers` layers, `(B, D)`, and queries, keys and values of these layers.
    """
    first_scored = len(layers) - num_layers
    hidden_states = text_model.embeddings(input_ids)
    kept = []
    for index, layer in enumerate(layers):
        queries, keys, values = project_qkv(layer, hidden_states)
        if index == first_scored:
            eos_hidden = hidden_states[rows, eos]
        if index >= first_scored:
            kept.append((queries, keys, values))
        if index == len(layers) - 1:
            break  # the output of the last layer is not needed
        query, key, value = (split_heads(each, layer.self_attn.head_dim) for each in (queries, keys, values))
        attention_output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=layer.self_attn.scale
        )
        hidden_states = finish_layer(layer, hidden_states, attention_output.transpose(1, 2).flatten(2))
    return eos_hidden, kept


def eos_pass(
    text_model: CLIPTextModel,
    text_projection: nn.Module,
    layers: Sequence[CLIPEncoderLayer],
    image_embeds: torch.Tensor,
    eos_hidden: torch.Tensor,
    kept: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    at_eos: torch.Tensor,
    after_eos: torch.Tensor,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pass EOS alone through `layers`, with gradients.

    Returns:
        For each layer, the gradient of the similarity with respect to the attention output, `(B, D)`, and EOS's row
        of the attention, mean over heads, `(B, T)`.
    """
    outputs, attentions = [], []
    with torch.enable_grad():
        hidden_states = eos_hidden.detach().requires_grad_()[:, None]  # (B, 1, D)
        for layer, (_, keys, values) in zip(layers, kept, strict=True):
            query, own_key, own_value = project_qkv(layer, hidden_states)
            # EOS's own key and value carry gradients to the layers below, so they replace the kept ones
            keys = torch.where(at_eos[..., None], own_key, keys)
            values = torch.where(at_eos[..., None], own_value, values)
            query, keys, values = (split_heads(each, layer.self_attn.head_dim) for each in (query, keys, values))

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
