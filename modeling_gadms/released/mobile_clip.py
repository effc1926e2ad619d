"""MobileCLIP-B, and MobileCLIP2-B of the same shape: the image tower of timm in the names of OpenAI's CLIP.

The tower is a ViT behind a stem of three convolutions without overlap. Each of the first two is followed by a batch
norm, which at inference is linear and is folded into the convolution. The class token has no position, so its row of
the table is 0. The last layer has a bias, for which CLIP's projection has no place: the bias of the norm before it is
moved to where the projection gives the same.
"""

import math

import torch

MODEL = "vit_base_mci_224"  # as timm calls it
BACKBONE, TRUNK = "visual.trunk.patch_embed.backbone.", "visual.trunk."
STEM = ("stem.0", "stem.2", "stem.4")  # our names of the convolutions; activations stand between them
BATCH_NORM_EPS, TIMM_EPS = 1e-5, 1e-6
PARTS = {  # of a block: timm's name -> OpenAI's
    "norm1": "ln_1",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def patch_shape(weights: dict[str, torch.Tensor], towers: str = "") -> tuple[int, int, int]:
    """Width of an image tower, channels of images, and the side of a patch, which a stem reaches in three steps."""
    if f"{towers}visual.{STEM[0]}.weight" not in weights:
        width, channels, patch = weights[f"{towers}visual.conv1.weight"].shape[:3]
        return width, channels, patch
    shapes = [weights[f"{towers}visual.{place}.weight"].shape for place in STEM]
    return shapes[-1][0], shapes[0][1], math.prod(shape[-1] for shape in shapes)


def in_names_of_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a MobileCLIP-B under the names that a plain ViT has; those of its text tower as they are.

    Raises:
        KeyError: a weight is missing; its name is the error's argument.
        ValueError: the bias of the projection is out of the projection's reach.
    """
    kept = dict(weights)
    found = {f"visual.{STEM[2]}.{part}": kept.pop(f"{BACKBONE}2.conv.{part}") for part in ("weight", "bias")}
    for number in (0, 1):
        convolution = f"{BACKBONE}{number}"
        kept.pop(f"{convolution}.bn.num_batches_tracked", None)  # how long the means were taken
        matrix, weight, bias, mean, variance = (
            kept.pop(f"{convolution}.{part}").double()
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = weight / (variance + BATCH_NORM_EPS).sqrt()
        found[f"visual.{STEM[number]}.weight"] = (matrix * scale[:, None, None, None]).float()
        found[f"visual.{STEM[number]}.bias"] = (bias - mean * scale).float()

    table = kept.pop(f"{TRUNK}pos_embed")[0]
    found["visual.class_embedding"] = kept.pop(f"{TRUNK}cls_token")[0, 0]
    found["visual.positional_embedding"] = torch.cat([torch.zeros_like(table[:1]), table])
    projection, bias = kept.pop(f"{TRUNK}head.weight"), kept.pop(f"{TRUNK}head.bias")
    found["visual.proj"] = projection.T
    found["visual.ln_post.weight"] = kept.pop(f"{TRUNK}norm.weight")
    found["visual.ln_post.bias"] = kept.pop(f"{TRUNK}norm.bias") + reached_by(projection, bias)
    return blocks_in_names_of_clip(kept, PARTS) | found


def blocks_in_names_of_clip(weights: dict[str, torch.Tensor], parts: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights with the blocks of timm's ViT under the names of OpenAI's; `parts` of a block: timm's -> OpenAI's."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(f"{TRUNK}blocks."):
            name = name.replace(f"{TRUNK}blocks", "visual.transformer.resblocks", 1)
            for timm, openai in parts.items():
                name = name.replace(f".{timm}", f".{openai}")
        renamed[name] = tensor
    return renamed


def reached_by(projection: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The shortest vector whose projection is the bias: `(D, W)` and `(D,)` -> `(W,)`.

    Raises:
        ValueError: the projection leaves out a direction that the bias has.
    """
    exact = projection.double()
    shift = torch.linalg.pinv(exact) @ bias.double()
    if (exact @ shift - bias.double()).abs().max() > 1e-6 * (1 + bias.abs().max()):
        raise ValueError("the bias of the image projection has no place: the projection does not reach it")
    return shift.to(bias.dtype)
