"""Any image file as plain RGB, or one error that names the file."""

import base64
import io
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .findings import DataError


class ImageError(DataError):
    """An image file that cannot be used. The message names the file and the cure; `code` is the kind of finding."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


def load_image(path: str | os.PathLike) -> Image.Image:
    """The decoded image in the file's own mode, EXIF rotation not applied.

    Raises:
        `ImageError`: no such file (`image-missing`), and what `decode_image` raises.
    """
    name = os.fspath(path)
    try:
        size = os.path.getsize(path)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the folder of the images", "image-missing") from error
    except Exception as error:  # a path that no system call takes
        raise _not_decoded(error, name) from error
    return _decode(path, size, name)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The decoded image in its own mode, EXIF rotation not applied.

    Raises:
        `ImageError`, which names `name`: 0 bytes (`image-empty`), more pixels than `PIL.Image.MAX_IMAGE_PIXELS`
            (`image-bomb`), or cut off, broken or no image (`image-unreadable`).
    """
    return _decode(io.BytesIO(data), len(data), name)


def decode_within(data: bytes, name: str, most_pixels: int) -> tuple[Image.Image, int]:
    """The image, upright and RGB; a JPEG of more than `most_pixels` pixels at a half, a quarter or an eighth.

    JPEG is decoded at that size right away, in a fraction of the memory. Raises what `decode_image` raises.

    Returns:
        The image, and how many times wider and higher the file's own is: 1, 2, 4 or 8.
    """
    image = _decode(io.BytesIO(data), len(data), name, most_pixels)
    return upright_rgb(image, name), image.info.pop("reduced_by", 1)


def _decode(
    source: str | os.PathLike | io.BytesIO, size: int, name: str, most_pixels: int | None = None
) -> Image.Image:
    if size == 0:
        raise ImageError(f"{name}: 0 bytes; copy the file again", "image-empty")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; the size is compared below, before a pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source)
        with image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if most_pixels and image.format in ("JPEG", "MPO"):
                width, height = image.size
                scale = next((k for k in (1, 2, 4) if width * height <= most_pixels * k * k), 8)
                image.draft(None, (width // scale, height // scale))
                image.info["reduced_by"] = round(width / image.width)
            image.load()
            return image
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error}, over the limit of {Image.MAX_IMAGE_PIXELS:,}; replace it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it.",
            "image-bomb",
        ) from error
    except Exception as error:  # hostile bytes make Pillow's decoders raise nearly every type there is
        raise _not_decoded(error, name) from error


def _not_decoded(error: Exception, name: str) -> ImageError:
    # Pillow's own words would show the address of a buffer in memory
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no known image format" if unknown else " ".join(str(error).replace(name, "").split())[:120]
    return ImageError(f"{name}: cannot be decoded ({reason}). Copy the file again.", "image-unreadable")


def jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the compressed pixels, as far as the lengths in the file lead."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        yield jpeg[place + 1], place, end
        place = end


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB image of the same pixels, as the model's image processor makes it of any image it is given.

    EXIF rotation is applied. 16-bit grey is reduced to its upper 8 bits (Pillow would clip nearly all of it to white),
    and float grey, if within [0, 1], is scaled to 255; alpha and transparent palette entries are laid on white (Pillow
    would show the colour hidden below them, mostly black); CMYK and the rest are converted by Pillow.
    """
    # `modeling_gadms/image_processing_gadms.py`, which ships alone, has the same rule; a test holds the two equal
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        tones = np.nan_to_num(np.asarray(image))
        scale = 255 if tones.max(initial=0) <= 1 else 1
        return Image.fromarray(np.rint((tones * scale).clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        # Mode "I" also carries 8-bit values (written by tools that widen them): those stay as they are.
        wide = image.mode != "I" or grey.max(initial=0) > 255
        return Image.fromarray((grey >> 8 if wide else grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """`to_rgb` with one kind of error. Raises `ImageError`, which names `name`."""
    try:
        # A plain image is passed on as it is: `to_rgb` would copy its pixels.
        return image if image.mode == "RGB" and orientation(image) == 1 else to_rgb(image)
    except Exception as error:  # a broken colour profile or EXIF block shows only here
        raise ImageError(
            f"{name}: cannot be converted from mode {image.mode} ({error}); save it again as RGB", "image-unreadable"
        ) from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for upright."""
    return image.getexif().get(Image.ExifTags.Base.Orientation, 1) or 1


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """The image in `data`, upright and RGB. Raises what `decode_image` raises."""
    return upright_rgb(decode_image(data, name), name)


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """An RGB image as a `data:` address, for pages that need no other file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def open_image(path: str | os.PathLike) -> Image.Image:
    """The file as an upright RGB image. Raises what `load_image` raises."""
    return upright_rgb(load_image(path), os.fspath(path))
