"""Token selection, the second branch of RDE: a way to score, beside the converted model and not a part of it.

Of each image, and of each caption, the tokens that the global one attends to most in the last layer are embedded once
more. RDE's similarity is the mean of the cosine of the global embeddings and of that of these (Qin et al., *Noisy-
Correspondence Learning for Text-to-Image Person Re-identification*, CVPR 2024, section 3.2). Both are one dot product
of embeddings put end to end, so that whatever ranks embeddings ranks by it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from dataset_webperson.files import replacing

from ..modeling_gadms import GADMSModel
from ..token_scores_gadms import project_qkv, split_heads
from ..towers_gadms import eos_positions, refuse_left_padding, valid_tokens

SELECTION_FILE = "token_selection.safetensors"
RATIO = 0.3  # of the tokens that there are places for; RDE's files do not record it
EXCLAMATION_MARK = 0  # its id in CLIP's vocabulary, which RDE takes for padding

# side of ours -> RDE's name, and that of the layer beside its MLP
SIDES = {"images": ("visul_emb_layer", "fc"), "captions": ("texual_emb_layer", "linear")}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class SelectedTokens(nn.Module):
    """Embeds chosen tokens of one side: an MLP, and one layer beside it; the maximum over the tokens.

    Args:
        width, hidden, wide (`int`): of the joint space, of the MLP, and of the embedding.
    """

    def __init__(self, width: int, hidden: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, wide)
        self.beside = nn.Linear(width, wide)

    def forward(self, tokens: torch.Tensor, attention: torch.Tensor, own: torch.Tensor, count: int) -> torch.Tensor:
        """Embed the `count` tokens that are attended to most, or all if they are fewer.

        Args:
            tokens (`torch.Tensor` of shape `(B, T, D)`): in the joint space.
            attention (`torch.Tensor` of shape `(B, T)`): of the global token.
            own (`torch.Tensor` of shape `(B, T)`): bool, tokens that may be chosen.
            count (`int`): at most so many.

        Returns:
            `torch.Tensor` of shape `(B, wide)`, not normalised; 0 where there is no token to choose.
        """
        strength, chosen = attention.masked_fill(~own, -1.0).topk(min(count, tokens.shape[1]), dim=1)
        tokens = F.normalize(tokens[torch.arange(len(tokens), device=tokens.device)[:, None], chosen], dim=-1)
        hidden = self.norm(self.first(tokens).transpose(1, 2)).transpose(1, 2).relu()
        found = self.second(hidden) + self.beside(tokens)
        found = found.masked_fill((strength < 0)[..., None], -torch.inf).amax(dim=1)
        return torch.where(own.any(dim=1, keepdim=True), found, 0.0)


class TokenSelection(nn.Module):
    """Both sides of the branch, from weights under the names of this class."""

    images: SelectedTokens
    captions: SelectedTokens

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for side in SIDES:
            (hidden, width), wide = weights[f"{side}.first.weight"].shape, len(weights[f"{side}.second.bias"])
            self.add_module(side, SelectedTokens(width, hidden, wide))
        self.load_state_dict(weights)
        self.eval()


def selection_names() -> dict[str, str]:
    """RDE's name of every weight that its branch uses -> ours."""
    names: dict[str, str] = {}
    for side, (released, beside) in SIDES.items():
        for theirs, ours in (("mlp.layers.0", "first"), ("mlp.layers.1", "second"), (beside, "beside")):
            names |= {f"{released}.{theirs}.{part}": f"{side}.{ours}.{part}" for part in ("weight", "bias")}
        names |= {f"{released}.mlp.bns.0.{part}": f"{side}.norm.{part}" for part in NORM}
    return names


def selection_from_released(weights: dict[str, torch.Tensor]) -> TokenSelection | None:
    """The branch in a checkpoint of RDE, in float32; `None` in one of another method.

    Raises:
        ValueError: only a part of the branch is there, or its shapes do not fit each other.
    """
    names = selection_names()
    if not any(name.startswith(tuple(f"{released}." for released, _ in SIDES.values())) for name in weights):
        return None
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"{len(missing)} weights of RDE's token selection are missing ({', '.join(missing[:3])})")
    found = {ours: weights[theirs] for theirs, ours in names.items()}
    found = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
    try:
        return TokenSelection(found)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"weights of RDE's token selection do not fit each other ({error})") from None


def save_selection(selection: TokenSelection, folder: str) -> None:
    """Write the branch beside a converted model."""
    with replacing(os.path.join(folder, SELECTION_FILE)) as temporary:
        save_file(selection.state_dict(), temporary)


def load_selection(name_or_path: str) -> TokenSelection | None:
    """The branch beside a model, in a folder or on the Hub; `None` where there is none.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(name_or_path, SELECTION_FILE, **missing)
    if path is None:
        return None
    try:
        return TokenSelection(load_file(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: is cut short or no token selection ({error!s:.80}); convert the checkpoint again"
        ) from None


class WithTokenSelection(nn.Module):
    """A converted RDE that embeds images and captions with both of its branches.

    Embeddings are the global one and that of the selected tokens, each of unit length, end to end: of unit length
    together, their dot product is the mean of both cosines.
    """

    def __init__(self, model: GADMSModel, selection: TokenSelection) -> None:
        super().__init__()
        if selection.captions.first.in_features != model.config.projection_dim or model.config.tower != "clip":
            raise ValueError(
                f"{SELECTION_FILE} takes tokens {selection.captions.first.in_features} wide of CLIP's towers, and the "
                f"model has {model.config.projection_dim} of {model.config.tower}: convert the checkpoint again"
            )
        self.model = model
        self.selection = selection.to(model.device, model.dtype)
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """`(B, 3, height, width)` -> `pooler_output` `(B, projection_dim + wide)`."""
        model = self.model
        with last_layer(model.vision_model) as entered:
            states = model.vision_model(pixel_values).last_hidden_state
        tokens = model.project_image_tokens(states)
        attention = attention_at(entered["layer"], entered["states"], torch.zeros_like(tokens[:, 0, 0]).long())
        own = torch.ones_like(attention, dtype=torch.bool)
        own[:, 0] = False
        selected = self.selection.images(tokens, attention, own, int((tokens.shape[1] - 1) * RATIO))
        return end_to_end(tokens[:, 0], selected)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """`(B, T)` -> `pooler_output` `(B, projection_dim + wide)`; it does not depend on padding."""
        model = self.model
        refuse_left_padding(input_ids, attention_mask)
        with last_layer(model.text_model) as entered:
            tokens = model.project_text_tokens(input_ids)
        eos = eos_positions(input_ids)
        later = torch.arange(input_ids.shape[1], device=input_ids.device) > eos[:, None]
        attention = attention_at(entered["layer"], entered["states"], eos, later)
        own = valid_tokens(input_ids) & (input_ids != EXCLAMATION_MARK)
        places = model.config.text_config.max_position_embeddings - 2  # but BOS and EOS
        selected = self.selection.captions(tokens, attention, own, int(places * RATIO))
        return end_to_end(tokens[torch.arange(len(tokens), device=tokens.device), eos], selected)


@contextmanager
def last_layer(tower: Any) -> Iterator[dict[str, Any]]:
    """Inside, what the last layer of a tower is given is kept: `{"layer": ..., "states": (B, T, width)}`."""
    layer = tower.encoder.layers[-1]
    kept: dict[str, Any] = {"layer": layer}
    hook = layer.register_forward_pre_hook(lambda _, given: kept.update(states=given[0]))
    try:
        yield kept
    finally:
        hook.remove()


def attention_at(
    layer: Any, states: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """How one token of each row attends in a layer, mean over heads.

    Args:
        states (`torch.Tensor` of shape `(B, T, width)`): what the layer is given.
        positions (`torch.Tensor` of shape `(B,)`): int64, the token.
        hidden (`torch.Tensor` of shape `(B, T)`, *optional*): bool, tokens that it does not see.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32.
    """
    queries, keys, _ = project_qkv(layer, states)
    rows = torch.arange(len(states), device=states.device)
    query = split_heads(queries[rows, positions][:, None], layer.self_attn.head_dim)
    logits = (query @ split_heads(keys, layer.self_attn.head_dim).transpose(-1, -2)).float() * layer.self_attn.scale
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None], -torch.inf)
    return logits.softmax(-1).mean(dim=1)[:, 0]


def end_to_end(global_embeds: torch.Tensor, selected: torch.Tensor) -> BaseModelOutputWithPooling:
    """Both embeddings as one of unit length: `(B, D)` and `(B, W)` -> `pooler_output` `(B, D + W)`."""
    both = [F.normalize(part.float(), dim=-1) * 0.5**0.5 for part in (global_embeds, selected)]
    return BaseModelOutputWithPooling(pooler_output=torch.cat(both, dim=-1))
