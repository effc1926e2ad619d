"""GA-DMS image processor: whole images resized to height x width, without a crop, and normalised as for CLIP."""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
import base64
import binascii
import http.client
import io
import os
import urllib.parse
import urllib.request
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from transformers import CLIPImageProcessorPil
from transformers.image_utils import ChannelDimension, SizeDict

FETCH_SECONDS = 60  # an address that does not answer for so long is refused


class GADMSImageProcessor(CLIPImageProcessorPil):
    """
    CLIP's Pillow image processor for pedestrians: bicubic to `size` (default 384 high, 128 wide), no crop.

    Takes PIL images of any mode, strings, numpy arrays, `(H, W, C)` or `(H, W)`, and torch tensors, `(C, H, W)` or
    `(H, W)`, alone or in a list, with 1, 3 or 4 channels; an array of the other layout is recognised if it is
    unambiguous. A string is the path of an image file, an address, `http://` or `https://`, or an image in base64,
    with or without `data:image/...;base64,`. PIL images and strings become the same upright RGB: EXIF rotation is
    applied, transparent pixels become white, 16-bit greys are reduced to 8 bits. Float arrays are read as [0, 1].

    Returns `pixel_values` (`torch.FloatTensor` of shape `(batch_size, 3, height, width)` with `return_tensors="pt"`).

    Raises:
        TypeError: an item of a list is not an image; the message gives its index.
        ValueError: an array has no pixels, another shape, or values that are neither 0 to 255 nor [0, 1]; a string
            names no image, or one that cannot be fetched or decoded, and the message names it.
    """

    size = {"height": 384, "width": 128}
    default_to_square = True
    do_center_crop = False
    crop_size = None  # type: ignore[assignment]  # CLIP's own, for a crop that is not done

    def fetch_images(self, images: Any) -> Any:
        # every image passes here, alone or in a list, also from the processor
        if not isinstance(images, list | tuple):
            return super().fetch_images(_opened(images))
        for index, image in enumerate(images):
            if not isinstance(image, PIL.Image.Image | np.ndarray | torch.Tensor | str | list | tuple):
                raise TypeError(f"Image {index} is {image!r}: expected a PIL image, an array, a tensor or a string")
        return super().fetch_images([_opened(image) for image in images])

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        if isinstance(image, PIL.Image.Image):
            if 0 in image.size:
                raise ValueError(f"an image of {image.width} x {image.height} pixels cannot be resized")
            if do_convert_rgb:
                image = _upright_rgb(image)
            image = _resized(image, **kwargs)
            if image.mode == "RGB":
                return np.array(image).transpose(2, 0, 1)  # CLIP's own processor would convert it, which copies it
        else:
            image, input_data_format = _as_array(image, input_data_format)
            if do_rescale:
                image = _to_8_bits(image)
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, do_rescale=do_rescale, **kwargs
        )

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: Any = None, reducing_gap: int | None = None, **kwargs: Any
    ) -> np.ndarray:
        if image.shape[1:] == (size.height, size.width):
            return image  # which would be made an image and copied, for nothing
        return super().resize(image, size, resample, reducing_gap, **kwargs)


def _resized(
    image: PIL.Image.Image, do_resize: bool | None = None, size: SizeDict | None = None, resample: Any = None, **_: Any
) -> PIL.Image.Image:
    """The image resized while it is Pillow's still: as an array it would be made an image again, at its full size."""
    if image.mode != "RGB" or not do_resize or size is None or not isinstance(resample, int):
        return image
    if not (size.height and size.width) or image.size == (size.width, size.height):
        return image
    return image.resize((size.width, size.height), PIL.Image.Resampling(resample))


def _opened(image: Any) -> Any:
    """A string as the image it names, a grey array `(H, W)` as `(H, W, 1)`, a tensor as `(1, H, W)`; others as is."""
    if isinstance(image, str):
        return _open_string(image)
    if isinstance(image, np.ndarray) and image.ndim == 2:
        return image[..., None]
    return image[None] if isinstance(image, torch.Tensor) and image.ndim == 2 else image


def _open_string(source: str) -> PIL.Image.Image:
    """The image of a path, an address or a base64 string, in its own mode.

    Not by transformers' `load_image`, whose conversion to RGB loses transparency and the tones of 16 bits.
    """
    name = source if len(source) <= 200 else f"{source[:60]}..."  # base64 is long
    file: str | io.BytesIO
    if source.startswith(("http://", "https://")):
        try:
            file = _fetched(source)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{name}: cannot be fetched ({error}); check the address") from error
        cure = "give the address of an image"
    elif os.path.isfile(source):
        file, cure = source, "copy the file again"
    else:
        encoded = source.partition(",")[2] if source.startswith("data:image/") else source
        try:
            file = io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{name}: no such file, and no base64; check the path") from error
        cure = "check the path, or the base64"
    try:
        with PIL.Image.open(file) as opened:
            opened.load()
            return opened
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises these on broken files
        raise ValueError(f"{name}: cannot be decoded ({error}); {cure}") from error


def _fetched(address: str) -> io.BytesIO:
    # spaces and letters that an address cannot hold are quoted; many servers refuse Python's own agent
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "GADMSImageProcessor"})
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as answer:
        return io.BytesIO(answer.read())


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image upright and in RGB, by the one rule for all ways in: `dataset_webperson.images.to_rgb` is its twin."""
    if image.mode == "RGB" and image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1:
        return image  # what follows would copy its pixels
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        tones = np.nan_to_num(np.asarray(image))
        scale = 255 if tones.max(initial=0) <= 1 else 1
        return PIL.Image.fromarray(np.rint((tones * scale).clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        # mode I has 32 bits and holds images of 8 and of 16 bits alike
        wide = image.mode != "I" or grey.max(initial=0) > 255
        return PIL.Image.fromarray((grey >> 8 if wide else grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _as_array(
    image: np.ndarray | torch.Tensor, layout: str | ChannelDimension | None
) -> tuple[np.ndarray, str | ChannelDimension]:
    """The image as a numpy array with three axes, and the place of the channels among them, first or last."""
    layouts = [ChannelDimension.LAST, ChannelDimension.FIRST]
    if isinstance(image, torch.Tensor):
        layouts.reverse()
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    # CLIP's own guess would mistake a numpy image one or three pixels high for one with its channels first
    for candidate in layouts if layout is None else [layout]:
        channels = image.shape[-1 if candidate == ChannelDimension.LAST else 0]
        if image.ndim == 3 and image.size and channels in (1, 3, 4):
            return image, candidate
    raise ValueError(
        f"an image has the shape {image.shape}: expected (H, W), (H, W, C) or (C, H, W), C one of 1, 3, 4"
    )


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    scale = 255 if image.dtype.kind in "fb" else 1
    if not (image.min() >= 0 and image.max() * scale <= 255):
        raise ValueError(
            f"an image of type {image.dtype} has values from {image.min()} to {image.max()}: expected 0 to 1 for "
            "floats, 0 to 255 for integers"
        )
    return np.rint(image * np.float32(scale)).astype(np.uint8)


GADMSImageProcessor.register_for_auto_class("AutoImageProcessor")
