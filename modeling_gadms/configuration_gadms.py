"""Configuration of GA-DMS: a text and an image tower over non-square images, and a masked-token decoder."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from typing import TYPE_CHECKING, Any

from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2TextConfig,
    PreTrainedConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    Tipsv2TextConfig,
    Tipsv2VisionConfig,
)


class GADMSTextConfig(CLIPTextConfig):
    """A [`CLIPTextConfig`] whose last three ids are mask, BOS and EOS.

    They are 49405 to 49407 in the released checkpoints. They follow from `vocab_size` and cannot be set, since EOS is
    found in a caption as its highest id.
    """

    model_type = "gadms_text_model"

    if TYPE_CHECKING:  # annotations that run would be fields of the configuration
        eos_token_id: int
        layer_norm_eps: float

        def __init__(self, **options: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        self.bos_token_id, self.eos_token_id, self.pad_token_id = self.vocab_size - 2, self.vocab_size - 1, 0
        super().__post_init__(**kwargs)


class NonSquareImages:
    """Of an image tower's configuration: `image_size` is `(height, width)` in pixels; one number means a square."""

    if TYPE_CHECKING:  # of the configurations that this is mixed into
        image_size: Any
        patch_size: Any

        def __init__(self, **options: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of PreTrainedConfig, mixed in
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
        patch = self.patch_size
        if len(sides) != 2 or min(sides) < patch:
            raise ValueError(
                f"image_size must be (height, width), each at least patch_size={patch}; got {self.image_size}"
            )
        self.image_size = sides
        if any(side % patch for side in sides):
            height, width = (max(round(side / patch), 1) * patch for side in sides)
            raise ValueError(
                f"image_size {sides} is not a multiple of patch_size {patch}; the nearest is ({height}, {width})"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; 384x128 pixels in patches of 16 are 24x8."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


class GADMSVisionConfig(NonSquareImages, CLIPVisionConfig):
    """A [`CLIPVisionConfig`] of non-square images, also of MetaCLIP 2, whose image tower is CLIP's.

    `stem_width` is not 0 in MobileCLIP-B: three convolutions, the first two of that width, stand for the one that cuts
    patches, and no norm before the first layer.
    """

    model_type = "gadms_vision_model"

    if not TYPE_CHECKING:
        image_size: int | list[int] | tuple[int, int] = (384, 128)
        patch_size: int = 16
        stem_width: int = 0


class GADMSEva02VisionConfig(GADMSVisionConfig):
    """The image tower of EVA02-CLIP, by default its base size.

    `reference_side` is the side of the square grid whose coordinates patches have, whatever the size of the images.
    """

    model_type = "gadms_eva02_vision_model"

    if TYPE_CHECKING:
        reference_side: int
    else:
        intermediate_size: int = 2048
        layer_norm_eps: float = 1e-6
        reference_side: int = 16


class GADMSPECoreVisionConfig(GADMSVisionConfig):
    """The image tower of PE-Core, by default its base size; `reference_side` as in [`GADMSEva02VisionConfig`]."""

    model_type = "gadms_pe_core_vision_model"

    if TYPE_CHECKING:
        reference_side: int
    else:
        hidden_act: str = "gelu"
        reference_side: int = 14


class GADMSSiglipVisionConfig(NonSquareImages, SiglipVisionConfig):
    """A [`SiglipVisionConfig`] of non-square images."""

    model_type = "gadms_siglip_vision_model"

    if not TYPE_CHECKING:
        image_size: int | list[int] | tuple[int, int] = (384, 128)
        patch_size: int = 16


class GADMSTipsv2VisionConfig(NonSquareImages, Tipsv2VisionConfig):
    """A [`Tipsv2VisionConfig`] of non-square images; patches of 14 do not divide 384x128, so it is 378x126."""

    model_type = "gadms_tipsv2_vision_model"

    if not TYPE_CHECKING:
        image_size: int | list[int] | tuple[int, int] = (378, 126)
        patch_size: int = 14


# text and image tower of each kind
TOWERS = {
    "clip": (GADMSTextConfig, GADMSVisionConfig),
    "eva02": (GADMSTextConfig, GADMSEva02VisionConfig),
    "pe_core": (GADMSTextConfig, GADMSPECoreVisionConfig),
    "metaclip_2": (MetaClip2TextConfig, GADMSVisionConfig),
    "siglip": (SiglipTextConfig, GADMSSiglipVisionConfig),
    "tipsv2": (Tipsv2TextConfig, GADMSTipsv2VisionConfig),
}


def has_clip_text(tower: str) -> bool:
    """Whether the text tower of a kind is CLIP's, with its vocabulary."""
    return TOWERS[tower][0] is GADMSTextConfig


class GADMSConfig(PreTrainedConfig):
    """Configuration of a GA-DMS model; the defaults are the paper's ViT-B/16 at 384x128.

    Args:
        tower (`str`): kind of both towers: `"clip"`, `"eva02"`, `"pe_core"`, `"metaclip_2"`, `"siglip"`, which is that
            of SigLIP 2 too, or `"tipsv2"`. [`GADMSModel.from_pretrained_towers`] and the converter set it.
        text_config (`dict` or [`GADMSTextConfig`], *optional*): the text tower; of other kinds than CLIP the class
            that [`TOWERS`] names.
        vision_config (`dict` or [`GADMSVisionConfig`], *optional*): the image tower, likewise.
        mask_token_id (`int`, *optional*): id that hides a token. In CLIP it is the last entry of the BPE vocabulary,
            just below BOS and EOS, and is not set.
        projection_dim (`int`): width of the joint space of images and captions, and of the decoder.
        temperature (`float`): divides the cosine to give similarity logits (0.02 in the paper).
        decoder_num_layers (`int`): transformer blocks after the decoder's cross-attention (4 in the paper).
        decoder_attends_padding (`bool`): the decoder sees captions padded with id 0 to the context length, and attends
            to the padding, as the released code does. The converter sets it for released decoders, which were trained
            so; new ones ignore padding, and their predictions do not depend on it.
        matching_head (`bool`): the decoder also says whether an image and a caption belong together.

    Raises:
        ValueError: `temperature` is not positive, `projection_dim` is not a multiple of 64, or the kind of towers is
            unknown or lacks its `mask_token_id`.
    """

    model_type = "gadms"
    sub_configs_defaults = {
        "text_config": GADMSTextConfig,  # type: ignore[dict-item]  # a class is made a SubConfigSpec by the parent
        "vision_config": GADMSVisionConfig,  # type: ignore[dict-item]
    }

    if TYPE_CHECKING:  # once validated
        text_config: GADMSTextConfig
        vision_config: GADMSVisionConfig
        projection_dim: int
        mask_token_id: int

        def __init__(self, **options: Any) -> None: ...
    else:
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
        projection_dim: int | None = 512
        logit_scale_init_value: float | int | None = 2.6592
        initializer_factor: float | None = 1.0
        mask_token_id: int | None = None

    tower: str = "clip"
    temperature: float = 0.02
    decoder_num_layers: int = 4
    decoder_attends_padding: bool = False
    matching_head: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.tower not in TOWERS:
            raise ValueError(f"tower is {self.tower!r}; choose one of {', '.join(TOWERS)}")
        for name, kind in zip(("text_config", "vision_config"), TOWERS[self.tower], strict=True):
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, kind(**(given or {})))
        super().__post_init__(**kwargs)
        if has_clip_text(self.tower):
            self.mask_token_id = self.text_config.vocab_size - 3
        elif self.mask_token_id is None:
            raise ValueError(f"towers of kind {self.tower} need the mask_token_id of their tokenizer")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive; got {self.temperature}")
        if self.projection_dim % 64:
            raise ValueError(f"projection_dim must be a multiple of 64 (the head width); got {self.projection_dim}")

    def decoder_config(self) -> CLIPTextConfig:
        """Configuration of the decoder: CLIP blocks at the width of the joint space, heads of 64."""
        config = CLIPTextConfig(
            vocab_size=self.text_config.vocab_size,
            bos_token_id=self.text_config.bos_token_id,
            eos_token_id=self.text_config.eos_token_id,
            hidden_size=self.projection_dim,
            intermediate_size=4 * self.projection_dim,
            num_attention_heads=self.projection_dim // 64,
            num_hidden_layers=self.decoder_num_layers,
            hidden_act="quick_gelu",
            layer_norm_eps=self.text_config.layer_norm_eps,
        )
        config._attn_implementation = self._attn_implementation
        config.matching_head = self.matching_head
        return config


GADMSConfig.register_for_auto_class()
