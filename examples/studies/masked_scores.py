"""What the text embedding loses without each token: masked, or barred from being read."""

import torch
import torch.nn.functional as F
from torch import nn

from modeling_gadms import GADMSModel
from modeling_gadms.token_scores_gadms import cached_text_pass, finish_layer, project_qkv, scored_layers, split_heads
from modeling_gadms.towers_gadms import eos_positions, valid_tokens


@torch.no_grad()
def masked_differences(model: GADMSModel, input_ids: torch.Tensor) -> torch.Tensor:
    """What each token adds to the unit text embedding: whole caption less the caption with that token masked.

    One forward pass of the text tower for each token: `(B, T)` ids -> `(B, T, D)`, 0 at BOS, EOS and padding.
    """

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(model.get_text_features(ids).pooler_output, dim=-1)

    whole, valid = embed(input_ids), valid_tokens(input_ids)
    differences = torch.zeros(*input_ids.shape, whole.shape[-1], device=input_ids.device)
    for position in range(1, input_ids.shape[1] - 1):
        rows, masked = valid[:, position], input_ids.clone()
        masked[:, position] = model.config.mask_token_id
        if rows.any():
            differences[rows, position] = whole[rows] - embed(masked[rows])
    return differences


@torch.no_grad()
def barred_differences(
    text_model: nn.Module, text_projection: nn.Module, input_ids: torch.Tensor, num_layers: int | None = None
) -> torch.Tensor:
    """As [`masked_differences`], with EOS barred from reading the token in the last layers in place of masking it.

    A stream of EOS for each token walks through those layers against the kept keys and values: together they cost as
    much as these layers for whole captions, without gradients. `(B, T)` ids -> `(B, T, D)`, 0 at BOS, EOS and padding.
    """
    layers = text_model.encoder.layers
    num_layers = scored_layers(len(layers), num_layers, len(input_ids), len(input_ids))
    eos, positions = eos_positions(input_ids), torch.arange(input_ids.shape[1], device=input_ids.device)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    at_eos, after_eos, valid = positions == eos[:, None], positions > eos[:, None], valid_tokens(input_ids)
    eos_hidden, kept = cached_text_pass(text_model, layers, num_layers, input_ids, rows, eos)
    # stream j may not read token j; those of BOS, EOS and padding read everything up to EOS
    barred = torch.diag_embed(valid) | after_eos[:, None]
    hidden_states = eos_hidden[:, None].expand(-1, len(positions), -1)  # (B, streams, D)
    for layer, (_, keys, values) in zip(layers[-num_layers:], kept, strict=True):
        heads = [split_heads(x, layer.self_attn.head_dim) for x in (*project_qkv(layer, hidden_states), keys, values)]
        query, own_key, own_value, key, value = heads  # (B, H, T, head_dim)
        # each stream reads its own key and value at EOS
        own_logits = (query * own_key).sum(dim=-1, keepdim=True)
        logits = torch.where(at_eos[:, None, None], own_logits, query @ key.transpose(-1, -2)) * layer.self_attn.scale
        weights = logits.masked_fill(barred[:, None], -torch.inf).softmax(-1)  # (B, H, streams, T)
        output = weights.masked_fill(at_eos[:, None, None], 0.0) @ value
        output += (weights * at_eos[:, None, None]).sum(dim=-1, keepdim=True) * own_value
        hidden_states = finish_layer(layer, hidden_states, output.transpose(1, 2).flatten(2))
    texts = F.normalize(text_projection(text_model.final_layer_norm(hidden_states)), dim=-1)
    return (texts[rows, eos][:, None] - texts) * valid[..., None]
