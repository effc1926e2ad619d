"""The token scores of a causal tower by one pass of whole captions with gradients, in which no token walks again."""

import torch
import torch.nn.functional as F
from transformers import CLIPTextModel

from modeling_gadms.token_scores_gadms import (
    finish_layer,
    layers_of,
    project_qkv,
    scored_layers,
    scores_of_layers,
    split_heads,
)
from modeling_gadms.towers_gadms import eos_positions, seen_tokens, valid_tokens


def folded_scores(
    text_model: CLIPTextModel, projection: torch.nn.Module, image_embeds: torch.Tensor, input_ids: torch.Tensor
) -> torch.Tensor:
    """`gradient_attention_scores` of a causal tower by one pass of whole captions: `(B, T)`, float32."""
    layers = layers_of(text_model)
    first = len(layers) - scored_layers(len(layers), None, len(image_embeds), len(input_ids))
    eos, rows = eos_positions(input_ids)[:, None], torch.arange(len(input_ids), device=input_ids.device)[:, None]
    kept, outputs, attentions = [], [], []
    hidden_states = text_model.embeddings(input_ids).detach()
    for number, layer in enumerate(layers):
        with torch.set_grad_enabled(number >= first):
            if number == first:
                hidden_states.requires_grad_()
            attention, qkv = layer.self_attn, project_qkv(layer, hidden_states)
            query, key, value = (split_heads(each, attention.head_dim) for each in qkv)
            output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=attention.scale)
            output = output.transpose(1, 2).flatten(2)
            hidden_states = finish_layer(layer, hidden_states, output)
        if number >= first:
            kept.append(tuple(each.detach() for each in qkv))
            outputs.append(output)
            at_eos = query.detach().transpose(1, 2)[rows, eos].transpose(1, 2)
            logits = (at_eos @ key.detach().transpose(-1, -2)).float() * attention.scale
            after = torch.arange(input_ids.shape[1], device=input_ids.device) > eos
            attentions.append(logits.masked_fill(after[:, None, None], -torch.inf).softmax(-1).mean(dim=1))
    with torch.enable_grad():
        text_embeds = projection(text_model.final_layer_norm(hidden_states[rows, eos])).squeeze(1)
        similarity = F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=-1)
        gradients = torch.autograd.grad(similarity.sum(), outputs)
    at_eos_of_layers = [one[rows, eos] for one in gradients]
    seen, valid = seen_tokens(input_ids, text_model.config), valid_tokens(input_ids, text_model.config)
    return scores_of_layers(kept, at_eos_of_layers, attentions, eos, seen, valid).detach()
