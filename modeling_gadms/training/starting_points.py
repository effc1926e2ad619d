"""Starting points of training: a GA-DMS, with or without its decoder, or a CLIP."""

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from dataset_webperson import DataError

from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..processing_gadms import GADMSProcessor


def load_starting_point(name_or_path: str, image_size: tuple[int, int]) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """Load a pre-training model and its processor; a missing decoder is new, drawn from torch's generator.

    The weights are float32 in whatever dtype they are stored: steps of training are too small for half precision.

    Args:
        name_or_path (`str`): Hub id or folder of a GA-DMS or a CLIP.
        image_size (`tuple[int, int]`): height and width in pixels, for a CLIP.

    Raises:
        OSError: there is nothing that can be loaded.
        DataError: it is neither a GA-DMS nor a whole CLIP, or a file of it is broken.
    """
    try:
        return _load(name_or_path, image_size)
    except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error) or type(error).__name__
        if reason.startswith(name_or_path):
            raise DataError(reason) from error
        raise DataError(f"{name_or_path}: cannot be loaded as a GA-DMS or a CLIP: {reason}") from error


def own_image_size(name_or_path: str) -> tuple[int, int]:
    """Height and width in pixels of the images that a CLIP or a GA-DMS was trained on."""
    size = AutoConfig.from_pretrained(name_or_path).vision_config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _load(name_or_path: str, image_size: tuple[int, int]) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != "gadms":
        model = GADMSForPreTraining.from_clip_pretrained(name_or_path, image_size=image_size, dtype=torch.float32)
        return model, GADMSProcessor.from_clip_pretrained(name_or_path, image_size=image_size)
    if config.architectures == ["GADMSModel"]:
        model = GADMSForPreTraining(config)
        model.gadms = GADMSModel.from_pretrained(name_or_path, dtype=torch.float32)
    else:
        model = GADMSForPreTraining.from_pretrained(name_or_path, dtype=torch.float32)
    return model, GADMSProcessor.from_pretrained(name_or_path)
