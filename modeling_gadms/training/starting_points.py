"""Starting points of training: a GA-DMS, with or without its decoder, or a CLIP or other towers."""

import os
from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from dataset_webperson import DataError

from ..configuration_gadms import GADMSVisionConfig
from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..processing_gadms import GADMSProcessor
from ..starting_towers_gadms import config_of_source, known_family, quiet_loading


def load_starting_point(
    name_or_path: str, image_size: tuple[int, int], matching_head: bool = False
) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """Load a pre-training model and its processor; a missing decoder is new, drawn from torch's generator.

    The weights are float32 in whatever dtype they are stored: steps of training are too small for half precision.

    Args:
        name_or_path (`str`): Hub id or folder of a GA-DMS, a CLIP, or other towers that
            [`GADMSModel.from_pretrained_towers`] starts from.
        image_size (`tuple[int, int]`): height and width in pixels, for towers.
        matching_head (`bool`): with the head of image-text matching, a new one where there is none. One that is not
            to be trained on is left out, for it would fall behind the towers.

    Raises:
        OSError: a file cannot be loaded.
        DataError: there is no model, it is neither a GA-DMS nor a whole CLIP, or a file of it is broken.
    """
    check_starting_point(name_or_path, image_size)
    try:
        model, processor = _load(name_or_path, image_size)
    except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error) or type(error).__name__
        if reason.startswith(name_or_path):
            raise DataError(reason) from error
        raise DataError(f"{name_or_path}: cannot be loaded as a GA-DMS, a CLIP or other towers: {reason}") from error
    model.set_matching_head(matching_head)
    return model, processor


def check_starting_point(name_or_path: str, image_size: tuple[int, int]) -> None:
    """Refuse what cannot be a starting point by its configuration alone, which is read in no time.

    Raises:
        DataError: there is no model, it is of another family, or its patches do not divide the size of the images.
    """
    kind = None
    with suppress(OSError):  # where there is none, config_of says so
        kind = PreTrainedConfig.get_config_dict(name_or_path)[0].get("model_type")
    if kind is not None and kind != "gadms":  # before its own code would be asked for
        try:
            known_family(name_or_path, kind)
        except ValueError as error:
            raise DataError(str(error)) from None
    config = config_of(name_or_path)
    if kind == "gadms":
        return
    try:
        GADMSVisionConfig(image_size=image_size, patch_size=config.vision_config.patch_size)
    except ValueError as error:
        raise DataError(f"{name_or_path}: {error}") from None


def has_decoder(name_or_path: str) -> bool:
    """Whether a starting point is a pre-training model, whose decoder has learnt, by its configuration alone."""
    config = config_of(name_or_path)
    return config.model_type == "gadms" and config.architectures != ["GADMSModel"]


def own_image_size(name_or_path: str) -> tuple[int, int]:
    """Height and width in pixels of the images that a GA-DMS, a CLIP or other towers were trained on.

    Of a SigLIP 2 for images of any shape, those of a square with as many patches as its position table.
    """
    config = config_of(name_or_path)
    vision = config.vision_config
    size = round(vision.num_patches**0.5) * vision.patch_size if config.model_type == "siglip2" else vision.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def config_of(name_or_path: str) -> Any:
    """The configuration of a model. Raises `DataError` where there is none."""
    try:
        with quiet_loading():
            return config_of_source(name_or_path)
    except (OSError, ValueError) as error:
        place = "the folder holds no model" if os.path.isdir(name_or_path) else "no such folder, nor model of the Hub"
        reason = " ".join(str(error).split()).split(". ")[0]
        raise DataError(
            f"{name_or_path}: {place} ({reason}); give the folder of a saved model, or its id on the Hub"
        ) from error


def _load(name_or_path: str, image_size: tuple[int, int]) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    config = config_of(name_or_path)
    model: GADMSForPreTraining
    if config.model_type != "gadms":
        model = GADMSForPreTraining.from_pretrained_towers(name_or_path, image_size=image_size, dtype=torch.float32)
        return model, GADMSProcessor.from_pretrained_towers(name_or_path, image_size=image_size)
    if config.architectures == ["GADMSModel"]:
        model = GADMSForPreTraining(config)
        model.gadms = GADMSModel.from_pretrained(name_or_path, dtype=torch.float32)
    else:
        model = GADMSForPreTraining.from_pretrained(name_or_path, dtype=torch.float32)
    processor = GADMSProcessor.from_pretrained(name_or_path)
    found, expected = (
        (processor.tower, processor.tokenizer.mask_token_id),
        (model.config.tower, model.config.mask_token_id),
    )
    if found != expected:
        raise ValueError(
            f"its processor is for {found[0]} towers with the mask token at {found[1]}, the model has {expected[0]} "
            f"towers with it at {expected[1]}: save the model's own processor there"
        )
    return model, processor
