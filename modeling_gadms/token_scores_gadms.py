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

In a bidirectional tower every token depends on every other, so this walk is exact for the last layer alone, and that
is the default there; with more layers all tokens walk, with gradients. `e` is then the position that is pooled, the
last in SigLIP. TIPSv2 pools all the caption's tokens: the score is summed over them, each taken as `e` in turn.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .towers_gadms import (
    TIPSV2,
    is_causal,
    kind_of,
    pool,
    pool_position,
    seen_tokens,
    valid_tokens,
    whole_captions,
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


def scored_layers(
    depth: int, num_layers: int | None, num_images: int, num_captions: int, default: int | None = None
) -> int:
    """Number of last text layers to use, by default two thirds of `depth`.

    Raises:
        ValueError: `num_layers` is outside 1..`depth`, or images and captions differ in number.
    """
    default = round(depth * 2 / 3) if default is None else default
    num_layers = default if num_layers is None else num_layers
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
    compiler: str | None = None,
) -> torch.Tensor:
    """Score every caption token against its image.

    Works under `torch.no_grad()`, `torch.inference_mode()` and autocast. Parameters receive no gradient and the scores
    carry none. They do not depend on the rest of the batch, nor on how far a caption is padded. For SigLIP this is so
    because its captions are always padded to the context length: the tower itself attends to padding.

    Args:
        text_model ([`CLIPTextModel`], or another kind of `towers_gadms`): the text tower.
        text_projection (`torch.nn.Module`): projection to the joint space.
        image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): image embeddings, taken as constants.
        input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image.
        num_layers (`int`, *optional*): last text layers used; by default two thirds of them (the paper's 8 of 12), and
            the last alone of a bidirectional tower, where more cost a backward pass of all tokens.
        compiler (`str`, *optional*): backend of `torch.compile` for what is done in each layer: on a GPU the walk of
            one token is so many small kernels that their starts, and not their work, take the time.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32, in [0, 1]; 0 at BOS, EOS and padding, and throughout a caption whose
        raw scores are all equal (a caption of one word, for example).

    Raises:
        ValueError: the tower has no `num_layers` layers, or images and captions differ in number.
    """
    layers, config = layers_of(text_model), text_model.config
    default = None if is_causal(config) else 1
    num_layers = scored_layers(len(layers), num_layers, len(image_embeds), len(input_ids), default)

    with torch.inference_mode(False), torch.no_grad(), without_dropout(text_model, text_projection):
        # clones: inference tensors cannot enter a graph
        given, image_embeds = input_ids.shape[1], image_embeds.clone()
        input_ids = whole_captions(input_ids.clone(), config)
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        pools_all = kind_of(config) == TIPSV2
        pooled = positions if pools_all else pool_position(input_ids, config)[:, None]
        walking = pooled if is_causal(config) or num_layers == 1 else positions
        hidden, kept = cached_text_pass(text_model, layers, num_layers, input_ids, rows, walking, compiler)
        seen = seen_tokens(input_ids, config)

        gradients, attentions = eos_pass(
            text_model,
            text_projection,
            layers[-num_layers:],
            image_embeds,
            hidden,
            kept,
            seen if pools_all else positions == pooled,
            ~seen,
            input_ids,
            compiler,
        )
        if walking.shape != pooled.shape:  # all tokens walked, one is pooled
            gradients, attentions = ([one[rows, pooled] for one in each] for each in (gradients, attentions))
        valid = valid_tokens(input_ids, config)
        return scores_of_layers(kept, gradients, attentions, pooled, seen, valid, compiler)[:, :given]


def scores_of_layers(
    kept: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    gradients: Sequence[torch.Tensor],
    attentions: Sequence[torch.Tensor],
    pooled: torch.Tensor,
    seen: torch.Tensor,
    valid: torch.Tensor,
    compiler: str | None = None,
) -> torch.Tensor:
    """The score of every token, `(B, T)`, float32, from what was found in each layer.

    Args:
        kept: queries, keys and values of each layer, each `(B, T, D)`.
        gradients, attentions: of the pooled tokens, `(B, P, D)` and `(B, P, T)`, as [`eos_pass`] returns them.
        pooled (`torch.Tensor` of shape `(B, P)`): their positions, or `(1, P)`, the same in all captions.
        seen, valid: bool `(B, T)`, what the pooled tokens attend to, and the caption's own words.
        compiler (`str`, *optional*): as in [`gradient_attention_scores`].
    """
    rows = torch.arange(len(seen), device=seen.device)[:, None]
    matrix = pooling_matrix(seen.sum(dim=1).clamp_min(2), seen.shape[1])
    total = torch.zeros(seen.shape, device=seen.device)
    score = compiled(layer_score, compiler)
    with torch.autocast(seen.device.type, enabled=False):
        pooling = matrix[rows, pooled], matrix
        for qkv, gradient, attention in zip(kept, gradients, attentions, strict=True):
            total += score(qkv, gradient, attention, pooling, seen, valid)
        return minmax(F.relu(total / len(kept)), valid)


@functools.cache
def compiled(function: Callable, backend: str | None) -> Callable:
    """A function as it is or, with a backend, compiled by `torch.compile`; one for all models and calls."""
    return function if backend is None else torch.compile(function, backend=backend)


def layer_score(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    gradient: torch.Tensor,
    attention: torch.Tensor,
    pooling: tuple[torch.Tensor, torch.Tensor],
    seen: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """One layer's part of the score, summed over the `P` tokens that are pooled: `(B, T)`.

    Args:
        qkv: queries, keys and values of the layer, each `(B, T, D)`.
        gradient, attention: of the pooled tokens, `(B, P, D)` and `(B, P, T)`, as [`eos_pass`] returns them.
        pooling: rows `(B, P, T)` of the pooled tokens in [`pooling_matrix`], and the whole of it.
        seen, valid: bool `(B, T)`, what the pooled tokens attend to, and the caption's own words.
    """
    queries, keys, values = qkv
    pooled_rows, matrix = pooling
    pooled_query = pooled_rows @ queries.float()  # (B, 1, D), or (B, T, D) where all are pooled
    importance = cosines(pooled_query, matrix @ keys.float())
    importance = minmax(importance, seen[:, None])
    products = gradient.float() @ values.float().transpose(1, 2)  # <g, v_j>
    gradient_score = importance * products

    attention = torch.where(valid[:, None], attention.float(), 0.0)
    attention_score = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
    return (gradient_score * attention_score).sum(dim=1)


def cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Cosine of every row of `(B, P, D)` with every row of `(B, T, D)`: `(B, P, T)`."""
    return F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).transpose(1, 2)


def cached_text_pass(
    text_model: CLIPTextModel,
    layers: Sequence[CLIPEncoderLayer],
    num_layers: int,
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    eos: torch.Tensor,
    compiler: str | None = None,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Pass whole captions through the tower.

    Returns:
        the states at `[rows, eos]` on entering the last `num_layers` layers, and queries, keys and values of these
        layers, each `(B, T, D)`.
    """
    first_scored = len(layers) - num_layers
    causal = is_causal(text_model.config)
    seen = None if causal else seen_tokens(input_ids, text_model.config)[:, None, None]
    hidden_states = text_model.embeddings(input_ids)
    read, attend = compiled(project_qkv, compiler), compiled(attend_and_finish, compiler)
    kept = []
    for index, layer in enumerate(layers):
        qkv = read(layer, hidden_states)
        if index == first_scored:
            eos_hidden = hidden_states[rows, eos]
        if index >= first_scored:
            kept.append(qkv)
        if index == len(layers) - 1:
            break  # the output of the last layer is not needed
        hidden_states = attend(layer, hidden_states, qkv, seen, causal)
    return eos_hidden, kept


def attend_and_finish(
    layer: CLIPEncoderLayer,
    hidden_states: torch.Tensor,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    seen: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """A CLIP layer from its queries, keys and values on; `seen` is `None` or bool, what all tokens attend to."""
    query, key, value = (split_heads(each, layer.self_attn.head_dim) for each in qkv)
    attention_output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=causal, scale=layer.self_attn.scale
    )
    return finish_layer(layer, hidden_states, attention_output.transpose(1, 2).flatten(2))


def eos_pass(
    text_model: CLIPTextModel,
    text_projection: nn.Module,
    layers: Sequence[CLIPEncoderLayer],
    image_embeds: torch.Tensor,
    eos_hidden: torch.Tensor,
    kept: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    at_eos: torch.Tensor,
    after_eos: torch.Tensor,
    input_ids: torch.Tensor | None = None,
    compiler: str | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pass EOS, or whatever is pooled, or every token, through `layers`, with gradients.

    Args:
        eos_hidden (`torch.Tensor` of shape `(B, P, D)`): states of the `P` tokens that walk: 1, or all `T`. One token
            may come as `(B, D)`, and is then returned so.
        at_eos (`torch.Tensor` of shape `(B, T)`): bool, the position of the one token.
        after_eos (`torch.Tensor` of shape `(B, T)`): bool, tokens that are not attended to.
        input_ids (`torch.Tensor` of shape `(B, T)`, *optional*): the captions, where all tokens walk.

    Returns:
        For each layer, the gradient of the similarity with respect to the attention output, `(B, P, D)`, and the rows
        of the attention, mean over heads, `(B, P, T)`.
    """
    outputs, attentions = [], []
    with torch.enable_grad():
        hidden_states = eos_hidden.detach().requires_grad_()
        if eos_hidden.dim() == 2:
            hidden_states = hidden_states[:, None]
        all_walk = hidden_states.shape[1] == at_eos.shape[1]
        step, finish = compiled(attend_from, compiler), compiled(finish_layer, compiler)
        for layer, (_, keys, values) in zip(layers, kept, strict=True):
            # keys and values of what walks carry gradients to the layers below, so they replace the kept ones
            output, attention = step(layer, hidden_states, keys, values, None if all_walk else at_eos, after_eos)
            outputs.append(output)
            attentions.append(attention.detach())
            hidden_states = finish(layer, hidden_states, output)
        tokens = text_projection(text_model.final_layer_norm(hidden_states))
        if all_walk and input_ids is not None:
            text_embeds = pool(tokens, input_ids, text_model.config)
        else:
            text_embeds = tokens.squeeze(1)
        similarity = F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=-1)
        gradients = list(torch.autograd.grad(similarity.sum(), outputs))
    if eos_hidden.dim() == 2:
        return [gradient.squeeze(1) for gradient in gradients], [attention.squeeze(1) for attention in attentions]
    return gradients, attentions


def attend_from(
    layer: CLIPEncoderLayer,
    hidden_states: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    walking: torch.Tensor | None,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention of one layer from the tokens that walk.

    Args:
        hidden_states (`torch.Tensor` of shape `(B, P, D)`): their states.
        keys, values (`torch.Tensor` of shape `(B, T, D)`): those kept of all tokens.
        walking (`torch.Tensor` of shape `(B, T)`, *optional*): bool, the place of the one that walks, where its
            own key and value are put; without it all walk, and own keys and values take the place of all.
        hidden (`torch.Tensor` of shape `(B, T)`): bool, tokens that are not attended to.

    Returns:
        The attention output before `out_proj`, `(B, P, D)`, and the mean over heads of the attention, `(B, P, T)`.
    """
    query, own_key, own_value = project_qkv(layer, hidden_states)
    keys = own_key if walking is None else torch.where(walking[..., None], own_key, keys)
    values = own_value if walking is None else torch.where(walking[..., None], own_value, values)
    query, keys, values = (split_heads(each, layer.self_attn.head_dim) for each in (query, keys, values))

    logits = (query @ keys.transpose(-1, -2)).float() * layer.self_attn.scale
    attention = logits.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)  # (B, H, P, T)
    output = (attention.to(values.dtype) @ values).transpose(1, 2).flatten(2)
    return output, attention.mean(dim=1)
