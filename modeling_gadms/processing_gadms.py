"""GA-DMS processor: captions to padded ids, images to pixel values, in one call."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
from collections.abc import Iterable
from typing import Any, Self

from transformers import BatchFeature, ProcessorMixin

from .configuration_gadms import has_clip_text
from .image_processing_gadms import GADMSImageProcessor
from .starting_towers_gadms import config_of_source, quiet_loading
from .tokenization_gadms import GADMSTokenizer, check_captions
from .tower_tokenizers_gadms import HUB_OPTIONS, tower_tokenizer


class GADMSProcessor(ProcessorMixin):
    """
    A [`GADMSImageProcessor`] and a [`GADMSTokenizer`], or the tokenizer of other towers than CLIP's.

    Args:
        image_processor (`GADMSImageProcessor`): images to `height x width`.
        tokenizer (`GADMSTokenizer`): captions to ids; it must have a mask token.
        tower (`str`): kind of the towers, as in [`GADMSConfig`]. For `"siglip"` captions are lower-cased and padded to
            the context length, as that tower was trained: with other padding its embeddings are others.

    Raises:
        ValueError: the tokenizer has no mask token, as CLIP's has none.
    """

    image_processor: GADMSImageProcessor
    tokenizer: GADMSTokenizer

    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor: GADMSImageProcessor, tokenizer: GADMSTokenizer, tower: str = "clip") -> None:
        super().__init__(image_processor, tokenizer)
        self.tower = tower
        if "mask_token" not in tokenizer.special_tokens_map:
            raise ValueError(
                f"the {type(tokenizer).__name__} has no mask token, which GA-DMS needs to mask words: build it with "
                "GADMSTokenizer.from_clip_vocabulary(<CLIP model or folder>), or the whole processor with "
                "GADMSProcessor.from_clip_pretrained(<CLIP model or folder>); for other towers with "
                "GADMSProcessor.from_pretrained_towers(<model or folder>)"
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

    @classmethod
    def from_pretrained_towers(cls, path: str, image_size: tuple[int, int] = (384, 128), **hub_kwargs: Any) -> Self:
        """
        Build the processor of [`GADMSModel.from_pretrained_towers`]: the towers' own tokenizer and image colours.

        Args:
            path (`str`): a model on the Hub or a local folder, with its tokenizer and, where its colours are not those
                its family was trained with, its image processor.
            image_size (`tuple[int, int]`): height and width in pixels.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.
        """
        hub_kwargs = {name: value for name, value in hub_kwargs.items() if name in HUB_OPTIONS}
        with quiet_loading():
            kind = config_of_source(path, **hub_kwargs).model_type
        if kind == "clip":
            return cls.from_clip_pretrained(path, image_size, **hub_kwargs)
        height, width = image_size
        images = GADMSImageProcessor(size={"height": height, "width": width}, **image_options(path, kind, hub_kwargs))
        return cls(images, tower_tokenizer(path, **hub_kwargs), "siglip" if kind == "siglip2" else kind)

    def caption_options(self, captions: str | list[str]) -> dict[str, Any]:
        """What the tokenizer is called with: `text`, and how it is padded and cut."""
        if self.tower != "siglip":
            return {"text": captions, "padding": True, "truncation": True}
        lower = captions.lower() if isinstance(captions, str) else [caption.lower() for caption in captions]
        return {"text": lower, "padding": "max_length", "truncation": True}

    def word_ids(self, caption: str) -> list[int]:
        """Number of the word of each token of a caption, padded as in a call; -1 at special tokens.

        Words are those of CLIP's tokenizer, or of other towers what stands between spaces: some of their tokenizers
        take a whole caption for one word.
        """
        encoding = self.tokenizer(**self.caption_options(caption), return_offsets_mapping=True)
        if has_clip_text(self.tower):
            return [-1 if word is None else word for word in encoding.word_ids()]
        numbers = []
        for start, end in encoding["offset_mapping"]:
            first = end - len(caption[start:end].lstrip())
            numbers.append(caption[:first].count(" ") if start < end else -1)
        return numbers

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
        if text is not None and self.tower == "siglip":
            options = self.caption_options(text)
            text = options.pop("text")
            # what a caller gives goes before, in whichever way it is given: twice is an error
            given = {**kwargs, **kwargs.get("text_kwargs", {}), **kwargs.get("common_kwargs", {})}
            kwargs |= {name: value for name, value in options.items() if name not in given}
        return super().__call__(images=images, text=text, **kwargs)


def image_options(path: str, kind: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Mean, spread and resampling that towers were trained with, as their folder or their family has them."""
    colours: dict[str, tuple[list[float], list[float]]] = {
        "metaclip_2": (GADMSImageProcessor.image_mean, GADMSImageProcessor.image_std),
        "tipsv2": ([0.0] * 3, [1.0] * 3),
    }
    mean, std = colours.get(kind, ([0.5] * 3, [0.5] * 3))
    options = {"image_mean": mean, "image_std": std}
    try:
        saved, _ = GADMSImageProcessor.get_image_processor_dict(path, **hub_kwargs)
    except OSError:  # no image processor there
        return options
    if not saved.get("do_normalize", True):
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return options | {name: saved[name] for name in ("image_mean", "image_std", "resample") if name in saved}


GADMSProcessor.register_for_auto_class("AutoProcessor")
