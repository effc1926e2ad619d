"""Ways from the bytes of an image file to pixels at training size.

Pillow is the measure. torchcodec decodes JPEG to the same pixels in less time, and torch resizes in less still, to
pixels that differ a little. nvJPEG, by torchcodec too, decodes whole batches on the device.
"""

import functools
import importlib
import struct
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dataset_webperson import DataError
from dataset_webperson.images import decode_rgb, jpeg_segments

PILLOW, TORCH, DEVICE = WAYS = ("pillow", "torch", "device")
_ROTATED_OR_OTHER_COLOURS = (0xE1, 0xEE)  # EXIF; Adobe's block, without which three components are YCbCr
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive


@functools.cache
def has_torchcodec() -> bool:
    """Whether torchcodec is here, and made for this torch."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def refuse_way(way: str, device: torch.device) -> None:
    """Refuse a way that does not exist here.

    Raises:
        ValueError: no such way; or `device` without a CUDA device or without torchcodec.
    """
    if way not in WAYS:
        raise ValueError(f"image_decoding={way!r}: choose one of {', '.join(WAYS)}")
    if way == DEVICE and device.type != "cuda":
        raise ValueError(
            f"image_decoding={DEVICE} decodes by nvJPEG, and training runs on {device.type}: choose {TORCH}"
        )
    if way == DEVICE and not has_torchcodec():
        raise ValueError(
            f"image_decoding={DEVICE} needs a torchcodec for torch {torch.__version__}: pip install torchcodec, or "
            f"choose {TORCH}"
        )


def stored_bytes(image: dict[str, Any], name: str) -> bytes:
    """The file of an image that was not decoded, `{"bytes": ..., "path": ...}`.

    Raises:
        DataError: it is not in the row, and not at its path; names the image.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        with open(image["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(
            f"image {name}: {error.strerror}, at {image['path']}; put it there, or train on a release, which embeds "
            "images: dataset_webperson.release"
        ) from error


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a whole JPEG, upright, grey or YCbCr, and not too large, as far as its head says."""
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return False
    for marker, start, end in jpeg_segments(data):
        if marker in _ROTATED_OR_OTHER_COLOURS:
            return False
        if marker in _FRAMES and end >= start + 10:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            limit = Image.MAX_IMAGE_PIXELS
            return bits == 8 and components in (1, 3) and (limit is None or 0 < height * width <= limit)
    return False


def decoded(data: bytes, name: str) -> torch.Tensor:
    """The image in `data`, upright and RGB: uint8 `(3, H, W)`, the same with torchcodec and without.

    Raises:
        `dataset_webperson.images.ImageError`: it is none, or broken; names `name`.
    """
    if has_torchcodec() and is_plain_jpeg(data):
        from torchcodec.decoders import decode_jpeg

        try:
            return decode_jpeg(data)
        except RuntimeError:  # Pillow says what is wrong, and of which image
            pass
    return torch.from_numpy(np.array(decode_rgb(data, name))).permute(2, 0, 1)


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An image, uint8 `(3, H, W)`, at another height and width, bicubic with antialiasing, on its own device."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    if pixels.device.type == "cpu":  # which has kernels for bytes
        return F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    return _resized_as_floats(pixels, size)


def _resized_as_floats(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    wide = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True)[0]
    return wide.round_().clamp_(0, 255).to(torch.uint8)


def for_device(data: bytes, name: str) -> bytes | torch.Tensor:
    """What a worker hands over of an image for the device to decode: its bytes or, if Pillow has to, its pixels."""
    return data if is_plain_jpeg(data) else decoded(data, name)


def decoded_on_device(
    images: list[bytes | torch.Tensor], names: list[str], size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Images at training size, uint8 `(B, 3, height, width)`, on the device.

    Args:
        images (`list`): of each image what `for_device` made of it.
        names (`list[str]`): for messages.
        size (`tuple[int, int]`): height and width.
        device (`torch.device`): where to decode and resize.

    Raises:
        `dataset_webperson.images.ImageError`: an image is broken; names it.
    """
    from torchcodec.decoders import decode_jpeg

    files = [image for image in images if isinstance(image, bytes)]
    try:
        found = iter(decode_jpeg(files, device=device) if files else [])
    except RuntimeError:  # of any one of them: Pillow finds it, or reads what the device does not
        pairs = zip(images, names, strict=True)
        found = iter([decoded(image, name).to(device) for image, name in pairs if isinstance(image, bytes)])
    pixels = [next(found) if isinstance(image, bytes) else image.to(device) for image in images]
    return torch.stack([resized(image, size) for image in pixels])
