"""Images and persons that stand in the training of one benchmark and in the validation or test of another.

Benchmarks were cut from the same recordings: ICFG-PEDES and RSTPReid both come from MSMT17, and their ids differ, so
images are compared by their looks. A person of whom one image is shared is shared as a whole.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .image_audit import ImageFacts
from .near_duplicates import close_pairs

NEAR_BITS = 4  # of 64: re-encoded and resized copies stay below, different pictures lie near 32


@dataclass
class ImageSet:
    """The readable images of one split.

    Attributes:
        name, split (`str`): of the benchmark, and as it names the split.
        is_training (`bool`): whether models are trained on it.
        paths, files (`list[str]`): of each image, relative to the benchmark's folder and absolute.
        persons (`list[int]`): the person in each.
        hashes (`np.ndarray` of shape `(n,)`, uint64): perceptual hashes.
    """

    name: str
    split: str
    is_training: bool
    paths: list[str]
    files: list[str]
    persons: list[int]
    hashes: np.ndarray


def image_set(
    name: str, split: str, is_training: bool, rows: Iterable[tuple[str, str, int]], facts: dict[str, ImageFacts]
) -> ImageSet:
    """The images of `rows`, `(path, file, person)`, that `facts` knows to be readable."""
    kept = [row for row in rows if row[0] in facts and not facts[row[0]].problem]
    paths, files, persons = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
    hashes = np.array([facts[path].hash for path in paths], np.uint64)
    return ImageSet(name, split, is_training, paths, files, persons, hashes)


@dataclass
class Overlap:
    """What a training split shares with a held-out split of another benchmark.

    Attributes:
        pairs (`np.ndarray` of shape `(k, 3)`, int64): number of the training image, of the held-out one, and bits in
            which their hashes differ.
    """

    training: ImageSet
    held_out: ImageSet
    pairs: np.ndarray

    def images(self) -> list[int]:
        """Numbers of the training images."""
        return sorted(set(self.pairs[:, 0].tolist()))

    def nearest_pairs(self) -> list[list[int]]:
        """One pair of each training image, that with the held-out image nearest to it."""
        nearest: dict[int, list[int]] = {}
        for pair in self.pairs.tolist():
            if pair[0] not in nearest or pair[2] < nearest[pair[0]][2]:
                nearest[pair[0]] = pair
        return list(nearest.values())

    def persons(self) -> set[int]:
        return {self.training.persons[number] for number in self.images()}

    def same_files(self) -> int:
        """How many of the training images are the same to the last byte as a held-out one."""
        files = self.training.files, self.held_out.files
        return len({i for i, j, _ in self.pairs.tolist() if _sha256(files[0][i]) == _sha256(files[1][j])})

    def __str__(self) -> str:
        counts = f"persons: {len(self.persons()):,}; the same file: {self.same_files():,}"
        shared = f"{len(self.images()):,} images of {self.training.split} ({counts})"
        return f"{self.training.name}: also in {self.held_out.split} of {self.held_out.name}: {shared}"


def overlaps(sets: list[ImageSet]) -> Iterator[Overlap]:
    """What each training split shares with each held-out split of another benchmark, where it shares anything."""
    for training in sets:
        for held_out in sets:
            if training.is_training and not held_out.is_training and training.name != held_out.name:
                found = list(close_pairs(training.hashes, held_out.hashes, NEAR_BITS))
                if found:
                    yield Overlap(training, held_out, np.concatenate(found))


def _sha256(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
