"""Perceptual hashes of images, and pairs of images whose hashes lie close."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDE = 32
# Rows 0..7 of the cosine transform (DCT-II) of 32 samples, float64 (8, 32).
_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
_BLOCK = 1 << 19  # comparisons at a time: 4 MB of 64-bit words, which stay in the cache


def perceptual_hash(image: Image.Image) -> int:
    """64-bit pHash: the 8 x 8 lowest frequencies of the grey 32 x 32 image, each above or below their median.

    Re-encoding, resizing and small changes of light turn a few bits; another picture turns about half of them.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    frequencies = _COSINES @ grey @ _COSINES.T
    bits = (frequencies > np.median(frequencies)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def close_pairs(left: np.ndarray, right: np.ndarray, max_distance: int) -> Iterator[np.ndarray]:
    """Pairs whose hashes differ in at most `max_distance` bits.

    Args:
        left (`np.ndarray` of shape `(n,)`, uint64): hashes of one set.
        right (`np.ndarray` of shape `(m,)`, uint64): hashes of the other.
        max_distance (`int`): number of bits.

    Yields:
        `np.ndarray` of shape `(k, 3)`, int64, k >= 1: rows `(i, j, distance)` in order of `i`, then `j`. Every pair is
        compared, in blocks: 34,000 x 20,000 takes seconds and a few MB.
    """
    if not len(right):
        return
    step = max(1, _BLOCK // len(right))
    for start in range(0, len(left), step):
        distances = np.bitwise_count(left[start : start + step, None] ^ right[None, :])  # (step, m) uint8
        i, j = np.nonzero(distances <= max_distance)
        if len(i):
            yield np.stack([start + i, j, distances[i, j].astype(np.int64)], axis=1)
