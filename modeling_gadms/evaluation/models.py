"""Any CLIP-like model of the Hub or a folder, with its own processor, ready to encode."""

from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, ProcessorMixin

from dataset_webperson.findings import reason_of


class Retriever(Protocol):
    """The interface that encoding needs, which [`GADMSModel`], CLIP, SigLIP and similar models have."""

    training: bool

    @property
    def config(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any: ...

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any: ...


def load_retriever(
    name_or_path: str, *, revision: str | None = None, bf16: bool = False, device: str | torch.device = "cpu"
) -> tuple[Any, ProcessorMixin]:
    """A model with `get_image_features` and `get_text_features`, and the processor saved with it.

    Args:
        name_or_path (`str`): folder or Hub id of a GA-DMS (a pre-training checkpoint loads without its decoder), or of
            a CLIP, SigLIP or similar model.
        revision (`str`, *optional*): of a Hub model, a commit, branch or tag; `main` by default.
        bf16 (`bool`): hold the weights and compute in bfloat16; embeddings are normalised and compared in float32.
        device: where to put the model.

    Returns:
        `(model, processor)`, the model in evaluation mode.

    Raises:
        OSError: nothing there that can be loaded.
        ValueError: not a model of images and captions, or not all of its weights.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = reason_of(error, name_or_path)
        raise OSError(
            f"{name_or_path}: no model can be read there ({reason}). Give the folder of "
            "a saved model (with config.json), or its id on the Hub"
        ) from error
    dtype = torch.bfloat16 if bf16 else torch.float32
    model, report = AutoModel.from_pretrained(
        name_or_path, config=config, revision=revision or "main", dtype=dtype, output_loading_info=True
    )
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(
            f"{name_or_path} is a {type(model).__name__}, which does not embed images and captions in one space: give "
            "a GA-DMS, CLIP, SigLIP or similar model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name_or_path}: {len(missing)} weights of {type(model).__name__} are missing ({missing[0]}, ...): what "
            "would stand in for them is random. Save the whole model there"
        )
    try:
        processor = AutoProcessor.from_pretrained(name_or_path, revision=revision or "main")
        whole = hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")
    except (OSError, ValueError) as error:
        reason = reason_of(error, name_or_path)
        raise OSError(
            f"{name_or_path}: its processor cannot be read ({reason}). Save it beside "
            "the model with processor.save_pretrained"
        ) from error
    if not whole:
        raise ValueError(
            f"{name_or_path}: only a {type(processor).__name__} is saved with the model; an image processor and a "
            "tokenizer are needed. Save the whole processor there with processor.save_pretrained"
        )
    return model.eval().to(device), processor
