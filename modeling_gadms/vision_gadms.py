"""Image towers over non-square images, one for each kind of configuration, with position tables resized to them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPPreTrainedModel,
    CLIPVisionModel,
    SiglipPreTrainedModel,
    SiglipVisionModel,
    Tipsv2VisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipMultiheadAttentionPoolingHead
from transformers.models.tipsv2.modeling_tipsv2 import (
    Tipsv2VisionEmbeddings,
    Tipsv2VisionEncoder,
    Tipsv2VisionPreTrainedModel,
)

from .configuration_gadms import GADMSSiglipVisionConfig, GADMSTipsv2VisionConfig, GADMSVisionConfig, NonSquareImages


class ConvolutionalStem(nn.Sequential):
    """Patches of MobileCLIP-B: three convolutions without overlap, whose strides multiply to the patch."""

    def __init__(self, config: GADMSVisionConfig) -> None:
        width, first = config.stem_width, config.patch_size // 4
        super().__init__(
            nn.Conv2d(config.num_channels, width, kernel_size=first, stride=first),
            nn.GELU(),
            nn.Conv2d(width, width, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(width, config.hidden_size, kernel_size=2, stride=2),
        )

    @property
    def weight(self) -> torch.Tensor:
        """Of the first convolution: what CLIP's initialisation looks for."""
        return self.get_parameter("0.weight")


class GADMSVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch embeddings with a position table for a grid of `height / patch` x `width / patch`."""

    config: GADMSVisionConfig
    image_size: tuple[int, int]
    patch_size: int

    def __init__(self, config: GADMSVisionConfig) -> None:
        # skips the parent's, which squares a single side
        nn.Module.__init__(self)
        self.config = config
        self.embed_dim = config.hidden_size
        height, width = config.image_size
        self.image_size = (height, width)
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(self.embed_dim))
        self.patch_embedding: nn.Conv2d | ConvolutionalStem  # type: ignore[assignment]  # the parent's is one
        if config.stem_width:
            self.patch_embedding = ConvolutionalStem(config)
        else:
            self.patch_embedding = nn.Conv2d(
                config.num_channels, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=False
            )
        rows, columns = config.grid
        self.num_positions = rows * columns + 1
        self.position_embedding = nn.Embedding(self.num_positions, self.embed_dim)
        self.position_ids = nn.Buffer(torch.arange(self.num_positions).expand((1, -1)), persistent=False)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """`(B, 3, height, width)` pixels -> `(B, 1 + patches, hidden_size)`; raises as [`grid_of`]."""
        grid = grid_of(pixel_values, self.config, interpolate_pos_encoding)
        table = resize_position_table(self.position_embedding(self.position_ids)[0], grid, self.config.grid)
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        # the length of a tensor would fix the batch of an exported graph
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return tokens + table


class GADMSSiglipVisionEmbeddings(nn.Module):
    """SigLIP's patch embeddings with a position table for a non-square grid."""

    def __init__(self, config: GADMSSiglipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        rows, columns = config.grid
        self.position_embedding = nn.Embedding(rows * columns, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """`(B, 3, height, width)` pixels -> `(B, patches, hidden_size)`; raises as [`grid_of`]."""
        grid = grid_of(pixel_values, self.config, interpolate_pos_encoding)
        table = resize_position_table(self.position_embedding.weight, grid, self.config.grid, class_rows=0)
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        return self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + table


class GADMSTipsv2VisionEmbeddings(Tipsv2VisionEmbeddings):
    """TIPSv2's patch embeddings, whose position table is resized from a non-square grid."""

    config: GADMSTipsv2VisionConfig

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        patch = self.config.patch_size
        grid = height // patch, width // patch
        return resize_position_table(self.position_embeddings[0], grid, self.config.grid, antialias=True)[None]


def grid_of(pixel_values: torch.Tensor, config: NonSquareImages, interpolate: bool) -> tuple[int, int]:
    """Rows and columns of patches of images `(B, 3, height, width)`.

    Raises:
        ValueError: the images are of another size than the model's, and `interpolate_pos_encoding`, which resizes the
            position table to their grid, is not set; or their sides are not whole patches.
    """
    height, width = pixel_values.shape[-2:]
    if (height, width) == tuple(config.image_size):
        return config.grid
    if not interpolate:
        raise ValueError(
            f"pixel_values are {height}x{width} (height x width) but the model takes {config.image_size[0]}x"
            f"{config.image_size[1]}: prepare them with the model's own processor, pass "
            "interpolate_pos_encoding=True, or load the model with "
            f"from_pretrained_towers(..., image_size=({height}, {width}))"
        )
    patch = config.patch_size
    rows, columns = height // patch, width // patch
    if rows * columns == 0 or height % patch or width % patch:
        raise ValueError(
            f"pixel_values are {height}x{width} (height x width): each side must be a multiple of the patch, {patch}"
        )
    return rows, columns


@contextmanager
def patches_kept(vision_model: nn.Module, kept_patches: torch.Tensor | None) -> Iterator[None]:
    """Inside, the image tower sees these patches of each image alone, with their positions (FLIP, section 3).

    Args:
        vision_model (`torch.nn.Module`): an image tower without register tokens.
        kept_patches (`torch.Tensor` of shape `(B, K)`, *optional*): int64, their numbers, row by row of the grid; by
            default the tower sees all.

    Raises:
        ValueError: the tower has register tokens, which stand among the patches.
    """
    if kept_patches is None:
        yield
        return
    if isinstance(vision_model, GADMSTipsv2VisionModel):
        raise ValueError("patch_dropout: TIPSv2's register tokens stand among its patches; train it without")
    class_rows = 1 if isinstance(vision_model, GADMSVisionModel) else 0

    def keep(module: nn.Module, inputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        rows = (kept_patches + class_rows)[..., None].expand(-1, -1, tokens.shape[-1])
        tokens = tokens.expand(len(rows), -1, -1)  # angles are the same for all images
        return torch.cat([tokens[:, :class_rows], tokens.gather(1, rows)], dim=1)

    with ExitStack() as hooks:
        for name, module in vision_model.named_children():
            if name in ("embeddings", "rotation"):
                hooks.enter_context(module.register_forward_hook(keep))
        yield


class WholeInitialization:
    """Initialises modules that own no parameter directly, such as an attention through its projections.

    transformers skips these in classes from outside, to guard against code that does not use its `initialization`.
    Without this mixin the weights of CLIP's attention and MLP, and those set below, would keep a generic distribution.
    """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module, is_custom_code=False)  # type: ignore[misc]  # of PreTrainedModel, mixed in


class GADMSVisionModel(WholeInitialization, CLIPVisionModel):
    """[`CLIPVisionModel`] over non-square images."""

    config: GADMSVisionConfig

    def __init__(self, config: GADMSVisionConfig) -> None:
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSVisionEmbeddings(config)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # CLIP's own spelling
        self.pre_layrnorm = nn.Identity() if config.stem_width else norm  # type: ignore[assignment]  # the parent's
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]  # annotated for the whole CLIP's configuration
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


class GADMSSiglipVisionModel(WholeInitialization, SiglipVisionModel):
    """[`SiglipVisionModel`] over non-square images."""

    config: GADMSSiglipVisionConfig

    def __init__(self, config: GADMSSiglipVisionConfig) -> None:
        SiglipPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSSiglipVisionEmbeddings(config)  # type: ignore[assignment]  # the parent's are square
        self.encoder = SiglipEncoder(config)  # type: ignore[arg-type]  # annotated for the whole configuration
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.use_head = True
        self.head = SiglipMultiheadAttentionPoolingHead(config)
        self.post_init()


class GADMSTipsv2VisionModel(WholeInitialization, Tipsv2VisionModel):
    """[`Tipsv2VisionModel`] over non-square images."""

    config: GADMSTipsv2VisionConfig

    def __init__(self, config: GADMSTipsv2VisionConfig) -> None:
        Tipsv2VisionPreTrainedModel.__init__(self, config)
        self.embeddings = GADMSTipsv2VisionEmbeddings(config)
        self.encoder = Tipsv2VisionEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        grid_of(pixel_values, self.config, interpolate_pos_encoding)  # refuses other sizes, which the parent takes
        return super().forward(pixel_values, **kwargs)


def resize_position_table(
    table: torch.Tensor,
    grid: tuple[int, int],
    from_grid: tuple[int, int] | None = None,
    class_rows: int = 1,
    antialias: bool = False,
) -> torch.Tensor:
    """Resize a `(1 + patches, D)` position table bilinearly to `(1 + rows * columns, D)`; class row kept.

    Args:
        table (`torch.Tensor`): a row for the class token, then one for each patch, row by row of the grid.
        grid (`tuple[int, int]`): rows and columns that it shall have.
        from_grid (`tuple[int, int]`, *optional*): rows and columns that it has; by default a square.
        class_rows (`int`): rows before those of the patches; SigLIP has none.
        antialias (`bool`): average what is made smaller, as SigLIP 2 with images of any shape and TIPSv2 do.

    Raises:
        ValueError: the table is not of that grid.
    """
    if from_grid is None:
        side = round((table.shape[0] - class_rows) ** 0.5)
        if side * side != table.shape[0] - class_rows:
            raise ValueError(
                f"a position table of {table.shape[0]} rows is not {'one class row and ' if class_rows else ''}"
                "a square grid of patches"
            )
        from_grid = side, side
    if grid == from_grid:
        return table
    first_rows, patch_rows = table[:class_rows], table[class_rows:]
    patches = patch_rows.T.reshape(1, -1, *from_grid).float()  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False, antialias=antialias)
    patch_rows = patches.flatten(2)[0].T.to(table.dtype)
    return torch.cat([first_rows, patch_rows])
