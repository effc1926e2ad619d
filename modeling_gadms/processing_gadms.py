"""GA-DMS processor: captions to padded ids, images to pixel values, in one call."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from collections.abc import Iterable
from typing import Any, Self

from transformers import BatchFeature, ProcessorMixin

from .image_processing_gadms import GADMSImageProcessor
from .tokenization_gadms import GADMSTokenizer, check_captions


class GADMSProcessor(ProcessorMixin):
    """
    A [`GADMSImageProcessor`] and a [`GADMSTokenizer`].

    Args:
        image_processor (`GADMSImageProcessor`): images to `height x width`.
        tokenizer (`GADMSTokenizer`): captions to ids; it must have a mask token.

    Raises:
        ValueError: the tokenizer has no mask token, as CLIP's has none.
    """

    image_processor: GADMSImageProcessor
    tokenizer: GADMSTokenizer

    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor: GADMSImageProcessor, tokenizer: GADMSTokenizer) -> None:
        super().__init__(image_processor, tokenizer)
        if "mask_token" not in tokenizer.special_tokens_map:
            raise ValueError(
                f"the {type(tokenizer).__name__} has no mask token, which GA-DMS needs to mask words: build it with "
                "GADMSTokenizer.from_clip_vocabulary(<CLIP model or folder>), or the whole processor with "
                "GADMSProcessor.from_clip_pretrained(<CLIP model or folder>)"
            )

    @classmethod
    def from_clip_pretrained(cls, path: str, image_size: tuple[int, int] = (384, 128), **hub_kwargs: Any) -> Self:
        """
        Build the processor on a CLIP model's vocabulary.

        Args:
            path: a CLIP model on the Hub, a local folder or a BPE file, as in [`GADMSTokenizer.from_clip_vocabulary`].
            image_size (`tuple[int, int]`): height and width in pixels.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.
        """
        height, width = image_size
        return cls(
            GADMSImageProcessor(size={"height": height, "width": width}),
            GADMSTokenizer.from_clip_vocabulary(path, **hub_kwargs),
        )

    def __call__(self, images: Any = None, text: str | Iterable[str] | None = None, **kwargs: Any) -> BatchFeature:
        """
        Pad captions to the longest of the batch, cut them at `model_max_length`, resize and normalise images.

        Args:
            images: an image or images, see [`GADMSImageProcessor`].
            text (`str` or iterable of `str`): a caption or captions; an empty one becomes BOS and EOS.
            kwargs: options of the tokenizer or the image processor, or of both, as `return_tensors` (default `"pt"`).

        Returns:
            `BatchFeature` with, for captions, `input_ids` and `attention_mask` (`torch.LongTensor` of shape
            `(batch_size, length)`, both 0 at padding) and, for images, `pixel_values` (`torch.FloatTensor` of
            shape `(batch_size, 3, height, width)`).

        Raises:
            TypeError: a caption is not a string; the message gives its index and value.
            ValueError: neither captions nor images, or an empty list of captions.
        """
        if text is not None and not isinstance(text, str):
            text = check_captions(text)
        return super().__call__(images=images, text=text, **kwargs)


GADMSProcessor.register_for_auto_class("AutoProcessor")
