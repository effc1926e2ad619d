"""Any image file as plain RGB, or one error that names the file."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from .findings import DataError


class ImageError(DataError):
    """An image file that cannot be used. The message names the file and the cure; `code` is the kind of finding."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


def load_image(path: str | os.PathLike) -> Image.Image:
    """The decoded image in the file's own mode, EXIF rotation not applied.

    Raises:
        `ImageError`: no such file (`image-missing`), 0 bytes (`image-empty`), more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (`image-bomb`), or cut off, broken or no image (`image-unreadable`).
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(path) == 0:
            raise ImageError(f"{name}: 0 bytes. Copy the file again.", "image-empty")
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; the size is compared below, before a pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            image.load()
            return image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file. Check the folder of the images.", "image-missing") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error}, over the limit of {Image.MAX_IMAGE_PIXELS:,}. Replace it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it.",
            "image-bomb",
        ) from error
    except Exception as error:  # hostile bytes make Pillow's decoders raise nearly every type there is
        reason = " ".join(str(error).replace(name, "").split())[:120]
        raise ImageError(f"{name}: cannot be decoded ({reason}). Copy the file again.", "image-unreadable") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB image of the same pixels.

    EXIF rotation is applied. 16-bit grey is scaled to 8 bits (Pillow would clip nearly all of it to white); alpha and
    transparent palette entries are laid on white (Pillow would show the colour hidden below them, mostly black);
    CMYK and the rest are converted by Pillow.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        # Mode "I" also carries 8-bit values (written by tools that widen them): those stay as they are.
        scale = 257 if image.mode != "I" or grey.max(initial=0) > 255 else 1
        return Image.fromarray((np.clip(grey, 0, 255 * scale) // scale).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def open_image(path: str | os.PathLike) -> Image.Image:
    """The file as an upright RGB image. Raises what `load_image` raises."""
    image = load_image(path)
    try:
        return to_rgb(image)
    except Exception as error:  # a broken colour profile or EXIF block shows only here
        raise ImageError(
            f"{os.fspath(path)}: cannot be converted from mode {image.mode} ({error}). Save it again as RGB.",
            "image-unreadable",
        ) from error
