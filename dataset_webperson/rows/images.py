"""The bytes of an image file, checked by decoding them, and turned into plain ones where they are not."""

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from ..images import ImageError, decode_image, decode_rgb, jpeg_segments, orientation, upright_rgb

JPEG_QUALITY = 95
# JPEG segments that describe the photograph, perhaps with place or name: EXIF and XMP (APP1), IPTC (APP13), comments.
_DESCRIBING = (0xE1, 0xED, 0xFE)


@dataclass(slots=True)
class CheckedImage:
    """What a check of one image gave. `problem`: a code of `findings.KINDS`, `image-small`, or "" if it is usable.

    `full_sha256` is the SHA-256 of what `data` would be at the image's own size, and "" where it is at that size.
    """

    data: bytes = b""
    width: int = 0
    height: int = 0
    converted: bool = False
    problem: str = ""
    message: str = ""
    full_sha256: str = ""


def check_image(
    data: bytes, name: str, min_side: int, only_jpeg: bool, cache_size: tuple[int, int] | None = None
) -> CheckedImage:
    """Decode an image completely. Nothing is raised for a bad one.

    The bytes of an upright 8-bit RGB or grey image stay as they are. Everything else (CMYK, 16 bits, palettes, alpha,
    an EXIF rotation) becomes an upright RGB picture, written as PNG.

    Args:
        data: the file.
        name: for messages.
        min_side: an image with a shorter side below this many pixels has the problem `image-small`.
        only_jpeg: write JPEG of quality 95 in the place of PNG, also for plain images in other formats, and leave out
            the segments of a JPEG that describe the photograph (EXIF, XMP, IPTC, comments), pixels untouched.
        cache_size: height and width to resize the checked image to, as the models' image processor does by default
            (bicubic, the whole image), written as JPEG of quality 95 without chroma subsampling.
    """
    checked = _checked(data, name, min_side, only_jpeg)
    if cache_size is None or checked.problem or (checked.height, checked.width) == cache_size:
        return checked
    height, width = cache_size
    image = decode_rgb(checked.data, name).resize((width, height), Image.Resampling.BICUBIC)
    full_sha256 = hashlib.sha256(checked.data).hexdigest()
    return CheckedImage(_as_jpeg(image), width, height, checked.converted, full_sha256=full_sha256)


def _checked(data: bytes, name: str, min_side: int, only_jpeg: bool) -> CheckedImage:
    try:
        image = decode_image(data, name)
        if min(image.size) < min_side:
            message = f"{name}: {image.width} x {image.height} pixels, shorter side below {min_side}"
            return CheckedImage(width=image.width, height=image.height, problem="image-small", message=message)
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info and orientation(image) == 1
        if plain and image.format == "JPEG":
            return CheckedImage(without_description(data) if only_jpeg else data, *image.size)
        if plain and not only_jpeg:
            return CheckedImage(data, *image.size)
        image = upright_rgb(image, name)
        if only_jpeg:
            return CheckedImage(_as_jpeg(image), *image.size, converted=True)
        buffer = io.BytesIO()
        # Without its old EXIF block: the rotation in it has been applied.
        image.save(buffer, format="PNG", compress_level=3, exif=b"")
        return CheckedImage(buffer.getvalue(), *image.size, converted=True)
    except ImageError as error:
        return CheckedImage(problem=error.code, message=str(error))
    except Exception as error:  # EXIF blocks of hostile files raise nearly every type there is
        message = f"{name}: {type(error).__name__} {error}"[:200]
        return CheckedImage(problem="image-unreadable", message=f"{message}; copy the file again")


def _as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def without_description(jpeg: bytes) -> bytes:
    """The same JPEG without its EXIF, XMP, IPTC and comment segments; the compressed pixels are not touched.

    Bytes whose segments cannot be followed are returned as they are.
    """
    parts, place = [jpeg[:2]], 2
    for marker, start, end in jpeg_segments(jpeg):
        if marker not in _DESCRIBING:
            parts.append(jpeg[start:end])
        place = end
    if place >= len(jpeg) or jpeg[place] != 0xFF:
        return jpeg
    return b"".join([*parts, jpeg[place:]])
