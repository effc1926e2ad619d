"""Image towers that rotate queries and keys by the place of their patch: those of EVA02-CLIP and of PE-Core.

Both are CLIP's ViT with its position table and its class token, and with a rotation of each head's queries and keys
(RoFormer, arXiv 2104.09864) in every layer: half of the pairs of numbers turn with the patch's row, half with its
column. EVA02-CLIP (arXiv 2303.15389) also has a gated MLP and norms inside of attention and MLP. PE-Core (arXiv
2504.13181) pools all tokens by attention, as SigLIP does.
"""

from typing import Any

import torch
from torch import nn
from transformers import CLIPPreTrainedModel, SiglipVisionConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    eager_attention_forward,
)
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import can_return_tuple

from .configuration_gadms import GADMSEva02VisionConfig, GADMSPECoreVisionConfig
from .vision_gadms import GADMSVisionEmbeddings, GADMSVisionModel, grid_of

SLOWEST = 10_000.0  # each pair of numbers turns slower than the one before, the last of them about this many times
POOLING_HEADS = 8  # of PE-Core, in every size


class Rotation(nn.Module):
    """How far each pair of a head's numbers turns at each token.

    A patch's coordinates are those of a reference grid, the one that the tower was trained on: each side of any other
    grid is stretched to it by itself, so that 24 rows and 8 columns cover the same 14 x 14 as a square image does.

    Args:
        config ([`GADMSEva02VisionConfig`] or [`GADMSPECoreVisionConfig`]): gives the width of heads and the side of
            the reference grid.
        first (`int`): number of the first row and column.
        columns_first (`bool`): the first half of the pairs turns with the column, not with the row.
    """

    def __init__(
        self, config: GADMSEva02VisionConfig | GADMSPECoreVisionConfig, first: int, columns_first: bool
    ) -> None:
        super().__init__()
        self.num_bands = config.hidden_size // config.num_attention_heads // 4
        self.side, self.first, self.columns_first = config.reference_side, first, columns_first

    def forward(self, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Angles in radians, float32, of a grid of `rows x columns`: `(1, 1 + patches, head width / 2)`.

        The class token, which comes first, does not turn.
        """
        options: dict[str, Any] = {"device": device, "dtype": torch.float32}
        rows, columns = ((torch.arange(count, **options) + self.first) / count * self.side for count in grid)
        bands = SLOWEST ** -(torch.arange(self.num_bands, **options) / self.num_bands)
        of_rows = (rows[:, None] * bands)[:, None].expand(*grid, -1)
        of_columns = (columns[:, None] * bands)[None].expand(*grid, -1)
        halves = (of_columns, of_rows) if self.columns_first else (of_rows, of_columns)
        patches = torch.cat(halves, dim=-1).flatten(0, 1)
        return torch.cat([torch.zeros_like(patches[:1]), patches])[None]


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbouring numbers by its angle, in float32: `(B, heads, T, width)` -> the same, its dtype.

    Args:
        cosines, sines (`torch.Tensor` of shape `(1 or B, 1, T, width / 2)`): float32, of the angles.
    """
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1)
    return turned.flatten(-2).to(states.dtype)


class RotaryAttention(CLIPAttention):
    """CLIP's attention between queries and keys that are turned by their place."""

    def __init__(self, config: GADMSEva02VisionConfig | GADMSPECoreVisionConfig) -> None:
        super().__init__(config)
        self.norm: nn.Module = nn.Identity()

    def forward(  # type: ignore[override]  # with the rotation
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        rotation: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(B, T, D)` -> `(B, T, D)` and, where attention is computed eagerly, its weights."""
        query, key, value = self.heads(hidden_states, rotation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        seen, weights = attend(self, query, key, value, attention_mask, scaling=self.scale, dropout=dropout, **kwargs)
        return self.output(seen.flatten(2)), weights

    def heads(
        self, hidden_states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys, turned, and values: `(B, T, D)` -> each `(B, heads, T, width)`."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for projection in projections
        )
        return rotate(query, *rotation), rotate(key, *rotation), value

    def output(self, seen: torch.Tensor) -> torch.Tensor:
        """What the heads saw, side by side, through norm and projection: `(..., D)` -> `(..., D)`."""
        return self.out_proj(self.norm(seen))


class Eva02Attention(RotaryAttention):
    """Keys have no bias, and what the heads saw is normalised before its projection."""

    def __init__(self, config: GADMSEva02VisionConfig) -> None:
        super().__init__(config)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Eva02MLP(nn.Module):
    """A gated MLP (SwiGLU, arXiv 2002.05202), normalised before its last layer."""

    def __init__(self, config: GADMSEva02VisionConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., hidden_size)` -> `(..., hidden_size)`."""
        gated = nn.functional.silu(self.gate(hidden_states)) * self.fc1(hidden_states)
        return self.fc2(self.norm(gated))


class Eva02Layer(CLIPEncoderLayer):
    """CLIP's layer with the attention and MLP of EVA02."""

    def __init__(self, config: GADMSEva02VisionConfig) -> None:
        super().__init__(config)
        self.self_attn = Eva02Attention(config)
        self.mlp = Eva02MLP(config)  # type: ignore[assignment]  # the parent's is not gated


class PECoreLayer(CLIPEncoderLayer):
    """CLIP's layer with an attention that turns queries and keys."""

    def __init__(self, config: GADMSPECoreVisionConfig) -> None:
        super().__init__(config)
        self.self_attn = RotaryAttention(config)


class RotaryEncoder(CLIPEncoder):
    """CLIP's encoder of other layers."""

    def __init__(
        self, config: GADMSEva02VisionConfig | GADMSPECoreVisionConfig, layer: type[Eva02Layer] | type[PECoreLayer]
    ) -> None:
        # skips the parent's, which builds layers of CLIP
        nn.Module.__init__(self)
        self.config = config  # type: ignore[assignment]  # annotated for the whole CLIP's configuration
        self.layers = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))  # type: ignore[arg-type]
        self.gradient_checkpointing = False


class GADMSEva02VisionModel(GADMSVisionModel):
    """The image tower of EVA02-CLIP over non-square images."""

    config: GADMSEva02VisionConfig
    rotation: Rotation
    _no_split_modules = ["Eva02Layer"]  # noqa: RUF012 - as in transformers

    def __init__(self, config: GADMSEva02VisionConfig) -> None:
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSVisionEmbeddings(config)
        self.embeddings.patch_embedding = nn.Conv2d(  # with a bias, for no norm follows
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.pre_layrnorm = nn.Identity()  # type: ignore[assignment]  # the parent's is a norm
        self.rotation = Rotation(config, first=0, columns_first=False)
        self.encoder = RotaryEncoder(config, Eva02Layer)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """As [`CLIPVisionModel`]; raises as [`grid_of`]."""
        turned = rotation_of(self, pixel_values, interpolate_pos_encoding)
        return super().forward(pixel_values, interpolate_pos_encoding, rotation=turned, **kwargs)


class GADMSPECoreVisionModel(GADMSVisionModel):
    """The image tower of PE-Core over non-square images."""

    config: GADMSPECoreVisionConfig
    rotation: Rotation
    _no_split_modules = ["PECoreLayer"]  # noqa: RUF012 - as in transformers

    def __init__(self, config: GADMSPECoreVisionConfig) -> None:
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotation = Rotation(config, first=1, columns_first=True)
        self.encoder = RotaryEncoder(config, PECoreLayer)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = SiglipMultiheadAttentionPoolingHead(
            SiglipVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_attention_heads=POOLING_HEADS,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
            )
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SiglipMultiheadAttentionPoolingHead):
            init.normal_(module.probe, std=self.config.hidden_size**-0.5)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """As [`CLIPVisionModel`], pooled by attention to all tokens; raises as [`grid_of`]."""
        turned = rotation_of(self, pixel_values, interpolate_pos_encoding)
        outputs = super().forward(pixel_values, interpolate_pos_encoding, rotation=turned, **kwargs)
        outputs.pooler_output = self.head(self.post_layernorm(outputs.last_hidden_state))
        return outputs


def rotation_of(
    tower: GADMSEva02VisionModel | GADMSPECoreVisionModel, pixel_values: torch.Tensor, interpolate: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles at each token of these images, float32, `(1 or B, 1, T, head width / 2)`."""
    grid = grid_of(pixel_values, tower.config, interpolate)
    angles = tower.rotation(grid, pixel_values.device)[:, None]
    return angles.cos(), angles.sin()
