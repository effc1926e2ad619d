"""Models of transformers that a GA-DMS can start from: their configuration and weights in the shapes that it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, Siglip2Config
from transformers.utils import logging

from .configuration_gadms import GADMSConfig
from .vision_gadms import resize_position_table

# models of transformers whose towers these are, by their model type
STARTS = {
    "metaclip_2": "metaclip_2",
    "siglip": "siglip",
    "siglip2": "siglip",
    "tipsv2": "tipsv2",
    "fgclip2": "siglip",
}
# what an FG-CLIP 2 has beside the SigLIP 2 that embeds its images and short captions, by how the names begin
BESIDE_SIGLIP_2 = {
    "text_model.embeddings.position_embedding_ori.": "the positions of long captions",
    "text_model.embeddings.position_embedding_res.": "the positions of long captions",
    "longtext_head.": "the head of long captions",
    "boxtext_head.": "the head of captions of regions",
    "dense_feature_head.": "the head of regions",
}

logger = logging.get_logger(__name__)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Inside, transformers warns of nothing: neither of missing weights, of which one error tells, nor of the ids of
    special tokens in SigLIP's configurations, which the tokenizer replaces.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def known_family(name: str, kind: str | None) -> str:
    """The type of a model, one whose towers these are; any other is an error."""
    if kind is None or kind not in ("clip", *STARTS):
        raise ValueError(
            f"{name}: is of type {kind}, whose towers GA-DMS cannot start from; take one of clip, "
            f"{', '.join(STARTS)}, or load a GA-DMS with from_pretrained"
        )
    return kind


def config_of_source(name: str, **hub_kwargs: Any) -> Any:
    """The configuration of a model of transformers to start from.

    That of an FG-CLIP 2, whose code transformers does not have, is read as its SigLIP 2's: without a mask, which its
    tokenizer does not give, its captions of up to 64 tokens take the same way, and so do its images.
    """
    content, _ = PreTrainedConfig.get_config_dict(name, **hub_kwargs)
    if content.get("model_type") != "fgclip2":
        return AutoConfig.from_pretrained(name, **hub_kwargs)
    of_code = ("model_type", "keep_len", "longtext_len")
    text, vision = (
        {key: value for key, value in (content.get(part) or {}).items() if key not in of_code}
        for part in ("text_config", "vision_config")
    )
    return Siglip2Config(text_config=text, vision_config=vision)


def leave_out(name: str, beside: set[str]) -> None:
    """Say in a line which weights of an FG-CLIP 2 are left out.

    Raises:
        ValueError: it has weights that are not known to be an FG-CLIP 2's.
    """
    left = sorted(weight for weight in beside if weight.startswith(tuple(BESIDE_SIGLIP_2)))
    if strange := sorted(beside.difference(left)):
        raise ValueError(
            f"{name}: has {len(strange)} weights that an FG-CLIP 2 does not have ({', '.join(strange[:3])}"
            f"{', ...' if len(strange) > 3 else ''}); give the folder as it was published"
        )
    parts = [f"{part}* ({what})" for part, what in BESIDE_SIGLIP_2.items() if any(w.startswith(part) for w in left)]
    logger.warning(f"{name}: of this FG-CLIP 2 {len(left)} weights are left out: {', '.join(parts)}")


def refuse_missing_weights(name: str, kind: str, missing: set[str], count: int | None = None) -> None:
    """Stop at a checkpoint that lacks weights of its own model; `count` is how many that has."""
    names = sorted(missing)
    if names:
        of_all = "" if count is None else f" of {count}"
        raise ValueError(
            f"{name} is not a whole {kind} model: {len(names)}{of_all} weights are missing "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        )


def config_of_towers(tower: str, config: Any, image_size: tuple[int, int], tokenizer: Any) -> GADMSConfig:
    """The configuration of a GA-DMS that starts from towers with this configuration and this tokenizer."""
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    for unfit in ("model_type", "num_patches"):
        text.pop(unfit, None)
        vision.pop(unfit, None)
    # what configurations say of special tokens is not always so; the tokenizer writes them
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text["vocab_size"] = max(text["vocab_size"], tokenizer.mask_token_id + 1)
    widths = {"metaclip_2": getattr(config, "projection_dim", None), "siglip": text.get("projection_size")}
    return GADMSConfig(
        tower=tower,
        text_config=text,
        vision_config={**vision, "image_size": tuple(image_size)},
        projection_dim=widths.get(tower, text["hidden_size"]),
        mask_token_id=tokenizer.mask_token_id,
    )


def fitted_weights(kind: str, weights: dict[str, torch.Tensor], config: GADMSConfig) -> dict[str, torch.Tensor]:
    """Weights of a model of transformers under the names and in the shapes that [`GADMSModel`] has."""
    weights = {name: tensor for name, tensor in weights.items() if "." in name}  # without scale, bias and temperature
    tokens = "text_model.embeddings.token_embedding.weight"
    if missing := config.text_config.vocab_size - len(weights[tokens]):
        mean = weights[tokens].mean(dim=0, keepdim=True)
        weights[tokens] = torch.cat([weights[tokens], mean.expand(missing, -1)])
    embeddings = "vision_model.embeddings."
    grid = config.vision_config.grid
    if kind == "tipsv2":
        table = embeddings + "position_embeddings"
        weights[table] = resize_position_table(weights[table][0], grid, antialias=True)[None]
        return weights
    table = embeddings + "position_embedding.weight"
    if kind == "metaclip_2":
        weights[table] = resize_position_table(weights[table], grid)
        return weights
    weights[table] = resize_position_table(weights[table], grid, class_rows=0, antialias=kind == "siglip2")
    for part in ("weight", "bias"):
        weights[f"text_projection.{part}"] = weights.pop(f"text_model.head.{part}")
    if kind == "siglip2":  # its patches come flat, (patch, patch, channel)
        patch, channels = config.vision_config.patch_size, config.vision_config.num_channels
        flat = weights[embeddings + "patch_embedding.weight"].view(-1, patch, patch, channels)
        weights[embeddings + "patch_embedding.weight"] = flat.permute(0, 3, 1, 2)
    return weights
