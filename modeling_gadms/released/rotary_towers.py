"""EVA02-CLIP and PE-Core: image towers of timm that rotate queries and keys, in the names of OpenAI's CLIP.

What these have beside a plain ViT's weights keeps a name of its own. The side of the grid whose coordinates patches
have is a part of timm's model and not of its weights, so models are known by their names. Not among them are
EVA02-CLIP-E, which rotates nothing and has another order of norms, and PE-Core-G, which has no class token.
"""

import torch

from ..configuration_gadms import GADMSConfig
from .mobile_clip import PARTS, TRUNK, blocks_in_names_of_clip

# as timm calls them: our kind of towers, and the side of the reference grid
ROTARY = {
    "eva02_base_patch16_clip_224": ("eva02", 16),
    "eva02_large_patch14_clip_224": ("eva02", 16),
    "eva02_large_patch14_clip_336": ("eva02", 16),
    "vit_pe_core_tiny_patch16_384": ("pe_core", 24),
    "vit_pe_core_small_patch16_384": ("pe_core", 24),
    "vit_pe_core_base_patch16_224": ("pe_core", 14),
    "vit_pe_core_large_patch14_336": ("pe_core", 24),
}
LAYER_NORM_EPS = {"eva02": 1e-6, "pe_core": 1e-5}
WHOLE = {  # names outside of the blocks: timm's -> OpenAI's
    "patch_embed.proj.": "conv1.",
    "norm_pre.": "ln_pre.",
    "norm.": "ln_post.",
    "head.bias": "proj_bias",
    "attn_pool.latent": "attn_pool.probe",
}
OF_EVA02 = {"mlp.fc1_x": "mlp.c_fc", "mlp.fc1_g": "mlp.c_gate"}
POOLING = {  # parts of PE-Core's: ours -> timm's
    "attention.out_proj": "proj",
    "layernorm": "norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def in_names_of_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an EVA02-CLIP or a PE-Core under the names that a plain ViT has; those of its text as they are.

    Raises:
        KeyError: a weight is missing; its name is the error's argument.
    """
    kept = dict(weights)
    found = {
        "visual.class_embedding": kept.pop(f"{TRUNK}cls_token")[0, 0],
        "visual.positional_embedding": kept.pop(f"{TRUNK}pos_embed")[0],
        "visual.proj": kept.pop(f"{TRUNK}head.weight").T,
    }
    if f"{TRUNK}attn_pool.latent" in kept:
        for part in ("weight", "bias"):
            both = [kept.pop(f"{TRUNK}attn_pool.{name}.{part}") for name in ("q", "kv")]
            found[f"visual.attn_pool.in_proj_{part}"] = torch.cat(both)
    for name in [name for name in kept if name.startswith(TRUNK) and name.endswith(".attn.q_proj.weight")]:
        attention = name.removesuffix(".q_proj.weight")
        for part, letters in (("weight", "qkv"), ("bias", "qv")):  # keys have no bias
            separate = [kept.pop(f"{attention}.{letter}_proj.{part}") for letter in letters]
            found[f"{attention}.qkv.{part}"] = torch.cat(separate)
    kept = blocks_in_names_of_clip(kept | found, OF_EVA02 | PARTS)
    for timm, openai in WHOLE.items():
        whole = f"{TRUNK}{timm}"
        kept = {
            f"visual.{openai}{name.removeprefix(whole)}" if name.startswith(whole) else name: tensor
            for name, tensor in kept.items()
        }
    return {
        f"visual.{name.removeprefix(TRUNK)}" if name.startswith(f"{TRUNK}attn_pool.") else name: tensor
        for name, tensor in kept.items()
    }


def beside_a_plain_vit(config: GADMSConfig) -> dict[str, str]:
    """What a tower has that a plain ViT does not: names without `visual.` -> ours without the model's prefix."""
    if config.tower == "eva02":
        names = {"conv1.bias": "vision_model.embeddings.patch_embedding.bias"}
        for index in range(config.vision_config.num_hidden_layers):
            ours = f"vision_model.encoder.layers.{index}"
            for released, part in (
                ("attn.norm", "self_attn.norm"),
                ("mlp.c_gate", "mlp.gate"),
                ("mlp.norm", "mlp.norm"),
            ):
                names |= _layer(f"transformer.resblocks.{index}.{released}", f"{ours}.{part}")
    elif config.tower == "pe_core":
        ours = "vision_model.head"
        names = {"attn_pool.probe": f"{ours}.probe"}
        names |= {f"attn_pool.in_proj_{part}": f"{ours}.attention.in_proj_{part}" for part in ("weight", "bias")}
        for part, released in POOLING.items():
            names |= _layer(f"attn_pool.{released}", f"{ours}.{part}")
    else:
        return {}
    return names | {"proj_bias": "visual_projection.bias"}


def _layer(released: str, ours: str) -> dict[str, str]:
    return {f"{released}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}
