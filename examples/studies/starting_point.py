"""Where the training of a study begins: at the small CLIP, which has read true captions, or at random weights."""

from masking_cells import SMALL_CLIP
from transformers import set_seed

from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.training.starting_points import load_starting_point


def starting_point(from_scratch: bool, seed: int, size: tuple[int, int]) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """The model and its processor, both the same for the same seed.

    Args:
        from_scratch: whether the towers keep nothing of the small CLIP but their shape and its tokenizer, as where
            captions with false words are all that a model ever reads. Its decoder is new in any case.
        size: (height, width) of the images in pixels.
    """
    set_seed(seed)
    model, processor = load_starting_point(SMALL_CLIP, size)
    return GADMSForPreTraining(model.config) if from_scratch else model, processor
