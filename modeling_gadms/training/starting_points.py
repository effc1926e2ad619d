"""Starting points of training: a GA-DMS, with or without its decoder, or a CLIP."""

from transformers import AutoConfig

from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..processing_gadms import GADMSProcessor


def load_starting_point(name_or_path: str, image_size: tuple[int, int]) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """A pre-training model and its processor; a decoder that is not there is new, drawn from torch's generator.

    Args:
        name_or_path (`str`): Hub id or folder of a GA-DMS or a CLIP.
        image_size (`tuple[int, int]`): height and width in pixels, for a CLIP.

    Raises:
        OSError: nothing there that can be loaded.
        ValueError: neither a GA-DMS nor a whole CLIP.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != "gadms":
        kinds = (GADMSForPreTraining, GADMSProcessor)
        return tuple(kind.from_clip_pretrained(name_or_path, image_size=image_size) for kind in kinds)
    if config.architectures == ["GADMSModel"]:
        model = GADMSForPreTraining(config)
        model.gadms = GADMSModel.from_pretrained(name_or_path)
    else:
        model = GADMSForPreTraining.from_pretrained(name_or_path)
    return model, GADMSProcessor.from_pretrained(name_or_path)
