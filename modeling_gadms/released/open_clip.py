"""What the weights of an open_clip model leave open: its activation, its heads and its colours.

Plain ViTs have the released layout, in any size (OpenAI, LAION, DataComp, DFN, MetaCLIP 1), and on the Hub the file
`open_clip_config.json` beside them, without which one would have to guess. Options under which the towers would
compute something else are refused.
"""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from dataset_webperson import DataError

from .mobile_clip import MODEL, patch_shape
from .rotary_towers import ROTARY

CONFIG_FILE = "open_clip_config.json"
CUSTOM_TEXT = "text."  # before the names of a text tower that open_clip calls custom; it is the same tower

# options of each tower that the shapes repeat, and those that they do not tell
TOLD = {
    "vision_cfg": {"width", "layers", "patch_size"},
    "text_cfg": {"width", "layers", "context_length", "vocab_size"},
}
USED = {"vision_cfg": {"head_width", "image_size", "mlp_ratio"}, "text_cfg": {"heads", "mlp_ratio"}}
# values under which other options change nothing in a plain ViT; so do all that are off
# MobileCLIP-B's image tower is one but for its stem; EVA02-CLIP and PE-Core have towers of their own here
PLAIN = {
    "timm_model_name": (MODEL, *ROTARY),
    "timm_pool": ("token", "map"),
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "eos_id": (2,),
}
OF_TRAINING = {"patch_dropout", "output_tokens", "hf_model_pretrained", "timm_model_pretrained"}
DEFAULTS = {
    "vision_cfg": {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224},
    "text_cfg": {"layers": 12, "width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408},
}
ACTIVATIONS = ("gelu", "quick_gelu")
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
WIDEST_OF_64 = 1024  # width of an image tower; open_clip gives those above it, from ViT-H on, wider heads
OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's own archives alone
FAMILIES = (
    "only plain ViTs can be converted (OpenAI's, LAION's, DataComp, DFN, MetaCLIP 1), MobileCLIP-B, EVA02-CLIP (B, L) "
    "and PE-Core (T, S, B, L); start from one of them, or with from_pretrained_towers from a MetaCLIP 2, SigLIP, "
    "SigLIP 2 or FG-CLIP 2 in its folder of transformers"
)


@dataclass(frozen=True)
class Settings:
    """What shapes do not tell of a checkpoint in the released layout; the defaults are OpenAI's.

    Attributes:
        hidden_act (`str`): activation of both towers.
        text_heads, vision_heads (`int`, *optional*): by default a head for each 64 of the width.
        image_options (`dict`): of the image processor.
        told (`dict`): options of open_clip that the shapes repeat, by tower, and `embed_dim`.
        timm_model (`str`, *optional*): timm's name of the image tower, if it is one of timm's.
    """

    hidden_act: str = "quick_gelu"
    text_heads: int | None = None
    vision_heads: int | None = None
    image_options: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    timm_model: str | None = None


def settings_beside(path: str) -> Settings | None:
    """The settings in the configuration beside an open_clip checkpoint; `None` beside any other checkpoint.

    Raises:
        ValueError: the configuration is broken, or of a model that is not a plain ViT.
    """
    file = os.path.join(os.path.dirname(path), CONFIG_FILE)
    if not os.path.isfile(file):
        return None
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
        model, prepared = content["model_cfg"], content.get("preprocess_cfg") or {}
        told = {tower: DEFAULTS[tower] | model[tower] for tower in DEFAULTS}
        told["embed_dim"] = model["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is no configuration of open_clip ({error!r}); copy it again") from None
    for tower in DEFAULTS:
        refuse_what_is_not_plain(file, tower, model[tower])
    vision, text = told["vision_cfg"], told["text_cfg"]
    timm_model = vision.get("timm_model_name")
    image_options: dict[str, Any] = {
        f"image_{name}": list(prepared[name]) for name in ("mean", "std") if name in prepared
    }
    if prepared.get("interpolation") in RESAMPLING:
        image_options["resample"] = RESAMPLING[prepared["interpolation"]]
    return Settings(
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu",
        text_heads=text["heads"],
        vision_heads=None if timm_model in ROTARY else vision["width"] // vision["head_width"],
        image_options=image_options,
        told=told,
        timm_model=timm_model,
    )


def refuse_undecided(path: str, weights: dict[str, torch.Tensor], activation: str | None) -> None:
    """Stop at a CLIP whose activation and heads neither its file nor the caller tells.

    OpenAI's CLIP and the models of open_clip share one layout, and run with the wrong activation or heads give
    plausible embeddings that are wrong. OpenAI's own archives say what they are.

    Raises:
        DataError: names the choices, and the models that need each.
    """
    if weights.keys() >= OPENAI_NUMBERS:
        return
    beside = f"put the model's {CONFIG_FILE} beside the file"
    width = len(weights["visual.class_embedding"])
    if width > WIDEST_OF_64:
        raise DataError(f"{path}: the weights do not tell the heads of an image tower {width} wide; {beside}")
    if activation is None:
        raise DataError(
            f"{path}: the weights do not tell their activation; {beside}, or give --activation quick_gelu (OpenAI, "
            "MetaCLIP 1, DFN and all *-quickgelu) or --activation gelu (other open_clip models: LAION, DataComp)"
        )


def refuse_what_is_not_plain(file: str, tower: str, options: dict[str, Any]) -> None:
    """Stop at an option of a tower under which it is not a plain ViT, as [`FAMILIES`] says."""
    for name, value in options.items():
        known = name in TOLD[tower] | USED[tower] | OF_TRAINING or value in PLAIN.get(name, ())
        if not known and value not in (None, False, 0, 0.0, "", {}):
            raise ValueError(f"{file}: {tower}.{name}={value} is not of a plain ViT; {FAMILIES}")


def without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a custom text tower under the names of a usual one."""
    return {name.removeprefix(CUSTOM_TEXT): tensor for name, tensor in weights.items()}


def refuse_other_shapes(path: str, weights: dict[str, torch.Tensor], settings: Settings) -> None:
    """Stop where the configuration beside a checkpoint is that of another model.

    Raises:
        ValueError: names the option, and what the weights have.
    """
    vocabulary, text_width = weights["token_embedding.weight"].shape
    vision_width, _, patch_size = patch_shape(weights)
    depths = {
        prefix: len({name.split(".")[at] for name in weights if name.startswith(f"{prefix}resblocks.")})
        for prefix, at in (("transformer.", 2), ("visual.transformer.", 3))
    }
    found = {
        "vision_cfg": {
            "width": vision_width,
            "layers": depths["visual.transformer."],
            "patch_size": patch_size,
        },
        "text_cfg": {
            "width": text_width,
            "layers": depths["transformer."],
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": vocabulary,
        },
    }
    # towers that rotate have their shapes by their names, and the configuration does not repeat them
    towers = ("text_cfg",) if settings.timm_model in ROTARY else tuple(TOLD)
    pairs = [
        (f"{tower}.{name}", settings.told[tower][name], found[tower][name]) for tower in towers for name in TOLD[tower]
    ]
    pairs.append(("embed_dim", settings.told["embed_dim"], weights["text_projection"].shape[1]))
    size, patches = settings.told["vision_cfg"]["image_size"], len(weights["visual.positional_embedding"]) - 1
    sides = (size, size) if isinstance(size, int) else size
    pairs.append(("vision_cfg.image_size", math.prod(side // patch_size for side in sides), patches))
    for name, said, is_so in sorted(pairs):
        if said != is_so:
            raise ValueError(f"{path}: {CONFIG_FILE} beside it gives {said} for {name}, the weights have {is_so}")
