"""Perceptual hashes of images, and pairs of images whose hashes lie close."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDE = 32
# Rows 0..7 of the cosine transform (DCT-II) of 32 samples, float64 (8, 32).
_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
_BLOCK = 1 << 19  # comparisons at a time: 4 MB of 64-bit words, which stay in the cache
ALL_BITS = (1 << 64) - 1
_CROWD = 256  # hashes that agree in a group of bits, above which they are told apart by more bits
_RUNS = 1 << 14  # hashes compared at a time


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


def close_to_earlier(hashes: np.ndarray, max_distance: int, fixed: int = 0) -> np.ndarray:
    """Which hashes differ in at most `max_distance` bits from one that stands before them.

    Hashes that differ in d bits agree in one of any d + 1 groups of bits, so only those that agree in a group meet.
    Where too many agree, as in large sets and with pictures that look alike, they are told apart by a group of their
    other bits, and so on: the work grows with the number of hashes, not with its square.

    Args:
        hashes (`np.ndarray` of shape `(n,)`, uint64): different from each other.
        max_distance (`int`): number of bits.
        fixed (`int`): the bits in which two hashes must agree to be compared at all.

    Returns:
        `np.ndarray` of shape `(n,)`, bool.
    """
    near = np.zeros(len(hashes), bool)
    _mark_close(hashes, np.arange(len(hashes)), max_distance, fixed, near)
    return near


def bands(max_distance: int, free: int = ALL_BITS) -> list[int]:
    """The bits of `free` in `max_distance + 1` groups, each as a mask. Neighbouring bits, which pictures often share
    because neighbouring frequencies do, go to different groups."""
    places = [place for place in range(64) if free >> place & 1]
    return [sum(1 << place for place in places[band :: max_distance + 1]) for band in range(max_distance + 1)]


def _mark_close(hashes: np.ndarray, rows: np.ndarray, max_distance: int, fixed: int, near: np.ndarray) -> None:
    """Set `near` for those of `rows` that are close to an earlier one which agrees with them in the bits `fixed`."""
    if not len(rows):
        return
    values = hashes[rows] & np.uint64(fixed)
    by_value = np.argsort(values)
    rows, values = rows[by_value], values[by_value]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    sizes = np.diff(np.append(starts, len(rows)))
    sizes = np.repeat(sizes, sizes)  # of each row's run
    # A group of bits tells 2 ** (its bits) hashes apart, and all groups are tried: with few bits that would not pay.
    free = ALL_BITS & ~fixed
    pays = 2 ** (free.bit_count() / (max_distance + 1)) > 2 * (max_distance + 1)
    largest = _CROWD if pays else len(rows)
    if len(many := rows[sizes > largest]):
        for band in bands(max_distance, free):
            _mark_close(hashes, many, max_distance, fixed | band, near)
    low = 1
    while low < largest:  # runs of about one length together
        _mark_neighbours(hashes, rows[(sizes > low) & (sizes <= min(2 * low, largest))], 2 * low, max_distance, near)
        low *= 2


def _mark_neighbours(hashes: np.ndarray, rows: np.ndarray, reach: int, max_distance: int, near: np.ndarray) -> None:
    """Compare each of `rows` with the `reach - 1` that follow it; of a close pair, set `near` for the later hash.

    It may belong to another run than the one that follows it: close they are all the same.
    """
    for start in range(0, len(rows), _RUNS):
        mine = rows[start : start + _RUNS + reach - 1]
        part = hashes[mine]
        for shift in range(1, min(reach, len(part))):
            hits = np.flatnonzero(np.bitwise_count(part[shift:] ^ part[:-shift]) <= max_distance)
            if len(hits):
                near[np.maximum(mine[hits], mine[hits + shift])] = True
