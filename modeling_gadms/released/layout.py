"""The released layout of weights, OpenAI CLIP's names plus the decoder's, and its mapping to ours, both ways.

Released files name the towers as OpenAI's CLIP does, under `base_model.` in files that may also hold a decoder.
Queries, keys and values are fused in one `in_proj`; `visual.proj` and `text_projection` are `(width, embed)` matrices
that tokens stand to the left of: the transpose of a linear layer's weight. GA-DMS, IRRA and NAM share this layout. HAM
has it without a decoder, or, fine-tuned by IRRA's code, with one; RDE without a decoder, beside a second branch.
"""

import math
import re
from typing import Any

import torch

from ..configuration_gadms import GADMSConfig
from .mobile_clip import STEM, TIMM_EPS, patch_shape
from .open_clip import FAMILIES, Settings
from .rotary_towers import LAYER_NORM_EPS, ROTARY, beside_a_plain_vit

# inside a transformer block: released name -> ours
BLOCK_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
DECODER_PARTS = {
    "ln_pre_t": "text_norm",
    "ln_pre_i": "image_norm",
    "cross_attn.out_proj": "cross_attention.out_proj",
    "ln_post": "final_norm",
    "mlm_head.dense": "dense",
    "mlm_head.ln": "head_norm",
    "mlm_head.fc": "vocabulary",
}
DECODER_PREFIXES = ("ln_pre_t.", "ln_pre_i.", "cross_attn.", "cross_modal_transformer.", "ln_post.", "mlm_head.")
TRANSPOSED = ("visual.proj", "text_projection")

# weights of released checkpoints that our models have no place for, and why
LEFT_BEHIND = {
    "classifier.weight": "tells apart the persons of one training set; retrieval does not use it",
    "classifier.bias": "tells apart the persons of one training set; retrieval does not use it",
    "logit_scale": "the temperature of GA-DMS is a constant of its configuration",
    "base_model.logit_scale": "the temperature of GA-DMS is a constant of its configuration",
    "input_resolution": "a number that the shapes repeat",
    "context_length": "a number that the shapes repeat",
    "vocab_size": "a number that the shapes repeat",
}

_SELECTION = (
    "the second branch of RDE, token selection, whose similarity RDE averages with that of this model; it is kept "
    "beside the model, for `--rescore token-selection` of the evaluation"
)
_UNUSED = "a layer of RDE's second branch that RDE itself does not use"
# the first prefix that fits counts
LEFT_BRANCHES = {
    "visul_emb_layer.linear.": _UNUSED,
    "visul_emb_layer.mlp.bns.1.": _UNUSED,
    "texual_emb_layer.mlp.bns.1.": _UNUSED,
    "visul_emb_layer.": _SELECTION,
    "texual_emb_layer.": _SELECTION,
}

# parts of names that give another method away, the most specific first
GIVEAWAYS = {
    "visul_emb_layer.": "RDE",
    "encode_text.": "TBPS-CLIP",
    "simclr_mlp.": "TBPS-CLIP",
    "text_encoder.bert.": "RaSa, or another descendant of ALBEF",
    "vision_encoder.": "APTM, or another descendant of X-VLM",
    "visual_encoder.": "BLIP or ALBEF, or a descendant of theirs",
    "vision_model.": "Hugging Face's CLIP (load its folder with GADMSModel.from_clip_pretrained) or converted already",
    "visual.layer1.": "a CLIP with a ResNet; only those with a ViT can be converted",
    "lora_": "an adapter (LoRA) without its model",
    "visual.trunk.patch_embed.backbone.": "MobileCLIP-B (put its open_clip_config.json beside the file)",
    "visual.trunk.": f"open_clip with an image tower of timm (put its open_clip_config.json beside it; {FAMILIES})",
    "text.transformer.": "open_clip (put its open_clip_config.json beside the file)",
}


def layout(config: GADMSConfig, towers: str = "", has_decoder: bool = False) -> dict[str, tuple[str, ...]]:
    """Every weight of the released layout, with its counterpart in ours: one weight, or those of query, key and value.

    Args:
        config ([`GADMSConfig`]): gives the depths.
        towers (`str`): prefix of the towers in the released layout, `""` or `"base_model."`.
        has_decoder (`bool`): ours is [`GADMSForPreTraining`], not [`GADMSModel`].
    """
    names: dict[str, tuple[str, ...]] = {}

    def layer(released: str, ours: str) -> None:
        for part in ("weight", "bias"):
            names[f"{released}.{part}"] = (f"{ours}.{part}",)

    def attention_input(released: str, ours: str, biased: str = "qkv") -> None:
        for part, letters in (("weight", "qkv"), ("bias", biased)):
            names[f"{released}.in_proj_{part}"] = tuple(f"{ours}.{which}_proj.{part}" for which in letters)

    def blocks(released: str, ours: str, depth: int, biased: str = "qkv") -> None:
        for index in range(depth):
            attention_input(f"{released}.resblocks.{index}.attn", f"{ours}.layers.{index}.self_attn", biased)
            for part, our_part in BLOCK_PARTS.items():
                layer(f"{released}.resblocks.{index}.{part}", f"{ours}.layers.{index}.{our_part}")

    ours = "gadms." if has_decoder else ""
    text, vision = f"{ours}text_model", f"{ours}vision_model"
    names[f"{towers}token_embedding.weight"] = (f"{text}.embeddings.token_embedding.weight",)
    names[f"{towers}positional_embedding"] = (f"{text}.embeddings.position_embedding.weight",)
    blocks(f"{towers}transformer", f"{text}.encoder", config.text_config.num_hidden_layers)
    layer(f"{towers}ln_final", f"{text}.final_layer_norm")
    names[f"{towers}text_projection"] = (f"{ours}text_projection.weight",)
    stem = config.vision_config.stem_width > 0
    if stem:
        for place in STEM:
            layer(f"{towers}visual.{place}", f"{vision}.embeddings.patch_embedding.{place.removeprefix('stem.')}")
    else:
        names[f"{towers}visual.conv1.weight"] = (f"{vision}.embeddings.patch_embedding.weight",)
    names[f"{towers}visual.class_embedding"] = (f"{vision}.embeddings.class_embedding",)
    names[f"{towers}visual.positional_embedding"] = (f"{vision}.embeddings.position_embedding.weight",)
    if not stem and config.tower != "eva02":
        layer(f"{towers}visual.ln_pre", f"{vision}.pre_layrnorm")
    biased = "qv" if config.tower == "eva02" else "qkv"
    blocks(f"{towers}visual.transformer", f"{vision}.encoder", config.vision_config.num_hidden_layers, biased)
    for released, name in beside_a_plain_vit(config).items():
        names[f"{towers}visual.{released}"] = (f"{ours}{name}",)
    layer(f"{towers}visual.ln_post", f"{vision}.post_layernorm")
    names[f"{towers}visual.proj"] = (f"{ours}visual_projection.weight",)
    if has_decoder:
        attention_input("cross_attn", "decoder.cross_attention")
        for part, our_part in DECODER_PARTS.items():
            layer(part, f"decoder.{our_part}")
        blocks("cross_modal_transformer", "decoder.encoder", config.decoder_num_layers)
    return names


def reason_to_leave(name: str) -> str | None:
    """Why a released weight has no place in our models; `None` of one that is unknown."""
    branches = (reason for prefix, reason in LEFT_BRANCHES.items() if name.startswith(prefix))
    return LEFT_BEHIND.get(name) or next(branches, None)


def from_released(weights: dict[str, torch.Tensor], names: dict[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Our weights from released ones, in the same dtypes: `in_proj` cut in three, projections transposed."""
    converted: dict[str, torch.Tensor] = {}
    for released, ours in names.items():
        tensor = weights[released].T if released.endswith(TRANSPOSED) else weights[released]
        converted.update(zip(ours, (part.contiguous() for part in tensor.chunk(len(ours))), strict=True))
    return converted


def to_released(weights: dict[str, torch.Tensor], names: dict[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Released weights from ours: the exact inverse of `from_released`; no memory is shared with `weights`."""
    converted: dict[str, torch.Tensor] = {}
    for released, ours in names.items():
        tensor = torch.cat([weights[name] for name in ours])
        converted[released] = (tensor.T if released.endswith(TRANSPOSED) else tensor).contiguous()
    return converted


def image_size_from(num_patches: int, patch_size: int, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width in pixels of the images that a position table of `num_patches` patches (class row off) is for.

    The table does not say its shape: a square number is read as a square, three times a square as pedestrians of 3:1
    (192 patches of 16 are 384x128), anything else must be given.

    Raises:
        ValueError: `image_size` does not have that many patches, or is needed and missing.
    """
    if image_size is not None:
        height, width = image_size
        rows, columns = height // patch_size, width // patch_size
        if height % patch_size or width % patch_size or rows * columns != num_patches:
            raise ValueError(
                f"the position table has {num_patches} patches, but {height}x{width} pixels (height x width) in "
                f"patches of {patch_size} are {height / patch_size:g} x {width / patch_size:g} = "
                f"{height * width / patch_size**2:g}; overlapping patches (a stride below the patch) are not supported"
            )
        return height, width
    side, columns = math.isqrt(num_patches), math.isqrt(num_patches // 3)
    if num_patches and side * side == num_patches:
        return side * patch_size, side * patch_size
    if num_patches and 3 * columns * columns == num_patches:
        return 3 * columns * patch_size, columns * patch_size
    raise ValueError(
        f"the position table has {num_patches} patches, neither a square nor a 3:1 grid: give the size of the images "
        "with --image_size HEIGHT WIDTH"
    )


def config_from_shapes(
    weights: dict[str, torch.Tensor],
    towers: str,
    image_size: tuple[int, int] | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> GADMSConfig:
    """The architecture of released weights; heads are 64 wide, as in OpenAI's ViTs, unless the settings say otherwise.

    Raises:
        KeyError: a weight whose shape is needed is missing; its name is the error's argument.
        ValueError: a position table that is no grid, or a width that its heads do not divide.
    """
    vocab_size, text_width = weights[f"{towers}token_embedding.weight"].shape
    context_length = weights[f"{towers}positional_embedding"].shape[0]
    vision_width, num_channels, patch_size = patch_shape(weights, towers)
    stem = weights.get(f"{towers}visual.{STEM[0]}.weight")
    num_patches = weights[f"{towers}visual.positional_embedding"].shape[0] - 1
    text_heads, vision_heads = settings.text_heads or text_width // 64, settings.vision_heads or vision_width // 64
    for name, width, heads, said in (
        ("text", text_width, text_heads, settings.text_heads),
        ("image", vision_width, vision_heads, settings.vision_heads),
    ):
        if heads == 0 or width % heads or said is None and width % 64:
            of_heads = "heads of 64" if said is None else f"{heads} heads"
            raise ValueError(f"the {name} tower is {width} wide, which {of_heads} do not divide")
    tower, side = ROTARY.get(settings.timm_model or "", ("clip", 0))
    of_timm: dict[str, Any] = {}
    if stem is not None:
        of_timm = {"stem_width": len(stem), "layer_norm_eps": TIMM_EPS}
    elif tower != "clip":
        of_timm = {"reference_side": side, "layer_norm_eps": LAYER_NORM_EPS[tower]}
    decoder_num_layers = _depth(weights, "cross_modal_transformer")
    return GADMSConfig(
        tower=tower,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": weights[f"{towers}transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_attention_heads": text_heads,
            "hidden_act": settings.hidden_act,
            "num_hidden_layers": _depth(weights, f"{towers}transformer"),
            "max_position_embeddings": context_length,
            "projection_dim": weights[f"{towers}text_projection"].shape[1],
        },
        vision_config={
            "image_size": image_size_from(num_patches, patch_size, image_size),
            **of_timm,
            "patch_size": patch_size,
            "num_channels": num_channels,
            "hidden_size": vision_width,
            "intermediate_size": weights[f"{towers}visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_attention_heads": vision_heads,
            "hidden_act": settings.hidden_act if tower == "clip" else "gelu",  # as all of timm's
            "num_hidden_layers": _depth(weights, f"{towers}visual.transformer"),
            "projection_dim": weights[f"{towers}visual.proj"].shape[1],
        },
        projection_dim=weights[f"{towers}text_projection"].shape[1],
        decoder_num_layers=decoder_num_layers or GADMSConfig.decoder_num_layers,
        decoder_attends_padding=decoder_num_layers > 0,  # as in training; a decoder that is still to come need not
    )


def _depth(weights: dict[str, torch.Tensor], transformer: str) -> int:
    """One more than the highest number of a block; a gap shows up later as missing weights."""
    pattern = re.compile(re.escape(transformer) + r"\.resblocks\.(\d+)\.")
    return max((int(found[1]) + 1 for name in weights if (found := pattern.match(name))), default=0)


def check_fits_released_layout(config: GADMSConfig) -> None:
    """Check that released code can run a model of this configuration.

    Raises:
        ValueError: the configuration differs in something that released code fixes and its files do not record.
    """
    if config.tower != "clip":
        raise ValueError(f"the released layout holds CLIP's towers alone, and this model has those of {config.tower}")
    for name, tower in (("text", config.text_config), ("image", config.vision_config)):
        found = (tower.hidden_size / tower.num_attention_heads, tower.hidden_act, tower.layer_norm_eps)
        if found != (64, "quick_gelu", 1e-5):
            raise ValueError(
                f"the released layout cannot hold this model: its {name} tower has heads {found[0]:g} wide, "
                f"activation {found[1]} and layer_norm_eps {found[2]:g}; released code takes 64, quick_gelu and 1e-05"
            )
