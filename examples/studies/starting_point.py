"""Where the training of a study begins: at the small CLIP, which has read true captions, or at random weights."""

import argparse
import os

import torch
from transformers import set_seed

from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.training.starting_points import load_starting_point

SMALL_CLIP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "small_clip")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option of a study that may begin at a larger model than the small CLIP."""
    parser.add_argument(
        "--model_name_or_path", help="where training begins, as a larger CLIP (default: the small CLIP)"
    )


def beginning(args: argparse.Namespace) -> tuple[str, str]:
    """How name and title of a study's page end: from elsewhere than the small CLIP, or for longer, it has its own."""
    model = os.path.basename(os.path.abspath(args.model_name_or_path)) if args.model_name_or_path else ""
    name, title = (f"_{model}", f" From {model}") if model else ("", "")
    if getattr(args, "from_scratch", False):
        name, title = f"_scratch{name}", " From random weights" + (f" of the shape of {model}" if model else "")
    if args.epochs != 1:
        name, title = f"{name}_{args.epochs:g}_passes", f"{title} ({args.epochs:g} passes)"
    return name, title


def starting_point(
    from_scratch: bool, seed: int, size: tuple[int, int], name_or_path: str | None = None
) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """The model, on a GPU where there is one, and its processor, both the same for the same seed.

    Args:
        from_scratch: whether the towers keep nothing of the small CLIP but their shape and its tokenizer, as where
            captions with false words are all that a model ever reads. Its decoder is new in any case.
        size: (height, width) of the images in pixels.
        name_or_path: of another model than the small CLIP.
    """
    set_seed(seed)
    model, processor = load_starting_point(name_or_path or SMALL_CLIP, size)
    if from_scratch:
        model = GADMSForPreTraining(model.config)
    return model.to(DEVICE), processor
