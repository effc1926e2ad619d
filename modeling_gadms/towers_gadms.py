"""What the method asks of the towers, answered for each kind that a configuration names.

Of a text tower, for right-padded captions of token ids:

- `eos_positions` and `valid_tokens`: which tokens are the caption's own, the words that may be hidden and scored;
- `is_causal`: whether a token sees the earlier ones alone;
- `whole_captions` and `attention_mask`: what the tower is given;
- `seen_tokens` and `pooled_tokens`: which tokens the pooled position attends to, and which states are pooled;
- `pool`: the embedding, from the states in the joint space.

| text tower | | the caption's own tokens | pooled | sees |
|---|---|---|---|---|
| CLIP, EVA02, PE-Core | causal | between BOS and EOS, the highest id | EOS | up to EOS |
| MetaCLIP 2 | causal | between BOS and EOS, `eos_token_id` | EOS | up to EOS |
| SigLIP, SigLIP 2 | bidirectional | before EOS | the last position, mostly padding | all, padding too |
| TIPSv2 | bidirectional | before padding | their mean | itself |

Of an image tower: `image_states`, the image's own state and those of its patches, row by row of `vision_config.grid`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

CLIP, METACLIP_2, SIGLIP, TIPSV2 = (
    "gadms_text_model",
    "metaclip_2_text_model",
    "siglip_text_model",
    "tipsv2_text_model",
)


def kind_of(text_config: PreTrainedConfig | None) -> str:
    """The model type of a text tower; without a configuration, and for a plain CLIP, that of CLIP."""
    kind = CLIP if text_config is None else text_config.model_type
    return kind if kind in (METACLIP_2, SIGLIP, TIPSV2) else CLIP


def is_causal(text_config: PreTrainedConfig | None) -> bool:
    """Whether a token of the text tower sees the earlier ones alone."""
    return kind_of(text_config) in (CLIP, METACLIP_2)


def eos_positions(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """Position of what ends each caption: EOS, or padding where the tower has no EOS; `(B, T)` ids -> `(B,)` int64.

    In CLIP EOS is the highest id of the vocabulary. Elsewhere it need not be: it is the first `eos_token_id` or
    `pad_token_id`, or the length `T` of a caption that neither ends.
    """
    if text_config is None or kind_of(text_config) == CLIP:
        return input_ids.argmax(dim=-1)
    ends = is_end(input_ids, text_config)
    return torch.where(ends.any(dim=-1), ends.int().argmax(dim=-1), input_ids.shape[1])


def is_end(input_ids: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """True at EOS and padding, of towers other than CLIP: `(B, T)` ids -> `(B, T)` bool."""
    ends = input_ids == text_config.pad_token_id
    return ends if text_config.eos_token_id is None else ends | (input_ids == text_config.eos_token_id)


def valid_tokens(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """True at the caption's own tokens, between BOS, if the tower has one, and EOS: `(B, T)` ids -> `(B, T)` bool."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    first = 1 if is_causal(text_config) else 0
    return (positions >= first) & (positions < eos_positions(input_ids, text_config)[:, None])


def caption_tokens(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """True up to EOS, BOS and EOS included, but never at padding, unless the caption is empty; `(B, T)` bool."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    ends = eos_positions(input_ids, text_config)
    last = (ends - 1).clamp_min(0) if kind_of(text_config) == TIPSV2 else ends
    return positions <= last[:, None]


def seen_tokens(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """True at the tokens that pooled positions attend to, a prefix of each caption; `(B, T)` bool."""
    if kind_of(text_config) == SIGLIP:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return caption_tokens(input_ids, text_config)


def attention_mask(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor | None:
    """The mask to give to the text tower: TIPSv2's hides padding; the others know what they see."""
    return seen_tokens(input_ids, text_config).long() if kind_of(text_config) == TIPSV2 else None


def whole_captions(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """The ids as the text tower must see them: `(B, T)` -> `(B, T)`, or `(B, context length)` for SigLIP.

    SigLIP attends to padding and pools at the last position, so without padding to the context length, or with other
    padding, its embedding is another one: whatever stands after EOS is replaced by padding up to the context length.
    """
    if kind_of(text_config) != SIGLIP:
        return input_ids
    padding = text_config.pad_token_id  # type: ignore[union-attr]  # None is CLIP
    missing = text_config.max_position_embeddings - input_ids.shape[1]  # type: ignore[union-attr]
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    after = positions > eos_positions(input_ids, text_config)[:, None]
    return F.pad(input_ids.masked_fill(after, padding), (0, max(missing, 0)), value=padding)


def pooled_tokens(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """True at the positions whose states are pooled: EOS, the last, or all that the caption has; `(B, T)` bool."""
    if kind_of(text_config) == TIPSV2:
        return caption_tokens(input_ids, text_config)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return positions == pool_position(input_ids, text_config)[:, None]


def pool_position(input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """The one position that is pooled, of towers other than TIPSv2: `(B, T)` ids -> `(B,)` int64."""
    if kind_of(text_config) == SIGLIP:
        return torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1)
    return eos_positions(input_ids, text_config).clamp_max(input_ids.shape[1] - 1)


def pool(tokens: torch.Tensor, input_ids: torch.Tensor, text_config: PreTrainedConfig | None = None) -> torch.Tensor:
    """Embeddings of captions from their tokens in the joint space: `(B, T, D)` -> `(B, D)`, not normalised."""
    if kind_of(text_config) == TIPSV2:
        own = pooled_tokens(input_ids, text_config)[..., None].to(tokens.dtype)
        return (tokens * own).sum(dim=1) / (own.sum(dim=1) + text_config.pooling_epsilon)  # type: ignore[union-attr]
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return tokens[rows, pool_position(input_ids, text_config)]


def random_ids(mask_token_id: int, text_config: PreTrainedConfig | None = None) -> tuple[int, int]:
    """Ids that a random word may have: from the first number to below the second.

    They are the vocabulary without the special tokens at its two ends, so that no random word ends a caption.
    """
    if text_config is None or kind_of(text_config) == CLIP:
        return 0, mask_token_id
    vocab_size = text_config.vocab_size
    named = (text_config.bos_token_id, text_config.eos_token_id, text_config.pad_token_id, mask_token_id)
    special = [token for token in named if token is not None and token < vocab_size]
    low = max((token + 1 for token in special if token < vocab_size // 2), default=0)
    high = min((token for token in special if token >= vocab_size // 2), default=vocab_size)
    return low, high


def on_host(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device to finish what it was given."""
    return tensor.device.type == "cpu"


def refuse_left_padding(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    text_config: PreTrainedConfig | None = None,
) -> None:
    """Stop at captions that are not padded on the right, or whose own tokens a mask hides: the towers ignore masks.

    Compiled and exported graphs are not checked, for the check would cut them in two; nor are captions on a device
    while gradients are recorded, for every training step would wait for it: the tokenizer refuses to pad on the left.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): token ids.
        attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): not 0 at a caption's own tokens.
        text_config ([`PreTrainedConfig`], *optional*): of the text tower, if it is not CLIP's.

    Raises:
        ValueError: padding stands before a caption, the mask hides one of its tokens, or has another shape.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or input_ids.shape[-1] < 2:
        return
    if torch.is_grad_enabled() and not on_host(input_ids):
        return
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)} but input_ids {tuple(input_ids.shape)}; both are "
            "(captions, tokens)"
        )
    eos = eos_positions(input_ids, text_config)
    if text_config is None or kind_of(text_config) == CLIP:
        # padding is id 0, as here, or EOS, as in CLIP; neither begins a caption
        misplaced = (eos == 0) | (input_ids[:, 0] == 0)
    else:
        ends = is_end(input_ids, text_config)
        misplaced = (ends[:, :-1] & ~ends[:, 1:]).any(dim=-1)
    if attention_mask is not None:
        own = caption_tokens(input_ids, text_config)
        misplaced |= ((attention_mask == 0) & own & ~is_empty(eos)[:, None]).any(dim=-1)
    if misplaced.any():
        row = int(misplaced.nonzero()[0])
        raise ValueError(
            f"caption {row} is padded on the left, or its mask hides tokens before EOS: captions stand at the left "
            'and are padded on the right; prepare them with the model\'s own processor and padding_side="right"'
        )


def is_empty(eos: torch.Tensor) -> torch.Tensor:
    """True at captions without any token, which only towers without BOS have."""
    return eos == 0


def image_states(vision_model: Any, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """An image's own state, and those of its patches as if each were the whole image: `(B, 1 + patches, width)`.

    CLIP's, EVA02's and TIPSv2's images have a token of their own. SigLIP's and PE-Core's are pooled by attention:
    there a patch's state is what the pooling would give if it attended to this patch alone. TIPSv2's register tokens
    are left out, and so is PE-Core's class token.
    """
    kind = vision_model.config.model_type
    if kind == "gadms_pe_core_vision_model":
        states = vision_model.post_layernorm(last_hidden_state)
        patches = attended_alone(vision_model.head, states[:, 1:])
        return torch.cat([vision_model.head(states)[:, None], patches], dim=1)
    if kind == "gadms_siglip_vision_model":
        pooled = vision_model.head(last_hidden_state)[:, None]
        return torch.cat([pooled, attended_alone(vision_model.head, last_hidden_state)], dim=1)
    if kind == "gadms_tipsv2_vision_model":
        first_patch = 1 + vision_model.config.num_register_tokens
        return torch.cat([last_hidden_state[:, :1], last_hidden_state[:, first_patch:]], dim=1)
    return vision_model.post_layernorm(last_hidden_state)


def attended_alone(head: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """What the pooling of SigLIP or PE-Core gives for each token, if it attends to that token alone: `(B, S, D)`.

    Attention to one token is 1 whatever the probe asks, so only the token's value counts.
    """
    attention: nn.MultiheadAttention = head.attention
    width = attention.embed_dim
    values = F.linear(hidden_states, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    output = attention.out_proj(values)
    return output + head.mlp(head.layernorm(output))
