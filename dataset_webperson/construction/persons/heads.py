"""Heads made unrecognisable: an ellipse around the keypoints of a head, of which a few cells' mean colours are left.

Half the height of a head is measured by the longest of what the keypoints show of a person, each in proportion to it,
and by the height of the crop, for a person who turns away shows some of them short and none of them long:

| seen | half a head's height is |
|---|---|
| both ears | 0.85 of their distance |
| both eyes | 1.9 |
| an eye and the ear of its side | 1.3 |
| the nose and an ear | 1.0 |
| both shoulders | 0.32 |
| middle of the shoulders to that of the hips | 0.24 |
| the crop | 0.05 to 0.15 of its height |
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from .rule import HEAD

_CELLS = 5  # that a head is high, whatever its size: eyes, nose and mouth have less than one each
_EDGE = 1.2  # the blur ends this much further out
_NOSE, _EYES, _EARS, _SHOULDERS, _HIPS = 0, (1, 2), (3, 4), (5, 6), (11, 12)
_PAIRS = (
    (*_EARS, 0.85),
    (*_EYES, 1.9),
    (_EYES[0], _EARS[0], 1.3),
    (_EYES[1], _EARS[1], 1.3),
    (_NOSE, _EARS[0], 1.0),
    (_NOSE, _EARS[1], 1.0),
    (*_SHOULDERS, 0.32),
)
_TORSO, _LEAST, _MOST = 0.24, 0.05, 0.15


class Ellipse(NamedTuple):
    """The middle, half the width and half the height, in pixels."""

    x: float
    y: float
    across: float
    down: float

    def moved(self, right: float, down: float) -> "Ellipse":
        return self._replace(x=self.x + right, y=self.y + down)


def head_ellipse(keypoints: np.ndarray, min_score: float, height: int) -> Ellipse | None:
    """Where the head is; `None` if no point of it is visible.

    Args:
        keypoints (`np.ndarray` of shape `(17, 3)`): x, y, score in COCO's order.
        min_score: of a visible keypoint.
        height: of the crop, in pixels.
    """
    seen = keypoints[:, 2] >= min_score
    points = keypoints[:, :2].astype(float)
    if not seen[HEAD].any():
        return None
    sizes = [_LEAST * height]
    sizes += [share * float(np.linalg.norm(points[a] - points[b])) for a, b, share in _PAIRS if seen[a] and seen[b]]
    shoulders, hips = (points[list(pair)][seen[list(pair)]] for pair in (_SHOULDERS, _HIPS))
    if len(shoulders) and len(hips):
        sizes.append(_TORSO * float(np.linalg.norm(shoulders.mean(0) - hips.mean(0))))
    half = min(max(sizes), _MOST * height)
    x, y = points[HEAD][seen[HEAD]].mean(0)
    return Ellipse(float(x), float(y), float(0.9 * half), float(1.15 * half))


def blur_head(image: Image.Image, ellipse: Ellipse) -> Image.Image:
    """The image with the ellipse blurred: within it nothing but the mean colours of cells, a fifth of its height each,
    and the pixels' own colours from 1.2 times its size outwards.

    Args:
        image (`Image.Image`): RGB.
        ellipse: it may reach over the image's edges, or lie beside it.
    """
    x, y, across, down = ellipse
    left, top = max(0, int(x - _EDGE * across)), max(0, int(y - _EDGE * down))
    right, bottom = min(image.width, int(x + _EDGE * across) + 1), min(image.height, int(y + _EDGE * down) + 1)
    if left >= right or top >= bottom:
        return image
    part = image.crop((left, top, right, bottom))
    cell = 2 * down / _CELLS
    cells = max(1, round(part.width / cell)), max(1, round(part.height / cell))
    coarse = part.resize(cells, Image.Resampling.BOX).resize(part.size, Image.Resampling.BILINEAR)
    columns, rows = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    distance = np.hypot((columns[None, :] - x) / across, (rows[:, None] - y) / down)
    weight = np.clip((_EDGE - distance) / (_EDGE - 1), 0, 1)[:, :, None]
    mixed = np.asarray(part) * (1 - weight) + np.asarray(coarse) * weight
    blurred = image.copy()
    blurred.paste(Image.fromarray(mixed.round().astype(np.uint8)), (left, top))
    return blurred
