"""Training without what other data sets of the same run are validated or tested on."""

import os
from collections.abc import Sequence

import datasets
from huggingface_hub.constants import HF_HOME

from dataset_webperson import DataError
from dataset_webperson.image_audit import audit_images
from dataset_webperson.overlap import ImageSet, image_set, overlaps

from .data import TuningSet

STORED = datasets.Image(decode=False)
FACTS_FOLDER = os.path.join(HF_HOME, "gadms-images")  # hashes of images, by path, size and time


def leave_out_overlap(
    sets: Sequence[TuningSet], keep: bool, folder: str | None = None, num_workers: int = os.cpu_count() or 1
) -> list[str]:
    """Take persons out of the training of each set of whom another set holds out an image; says what was found.

    Images are compared by their looks, as the doctor does; drawings, which no file holds, are left alone.

    Args:
        keep (`bool`): only say it.
        folder (`str`, *optional*): where hashes of images are kept; by default in the cache of Hugging Face.

    Raises:
        DataError: nothing of a training set is left.
    """
    folder = FACTS_FOLDER if folder is None else folder
    os.makedirs(folder, exist_ok=True)
    known = [found for one in sets for found in _image_sets(one, folder, num_workers)]
    shared: dict[str, set[int]] = {}
    notes = []
    for overlap in overlaps(known):
        notes.append(str(overlap))
        shared.setdefault(overlap.training.name, set()).update(overlap.persons())
    for one in sets if not keep else ():
        persons = shared.get(one.name, set())
        rows = one.rows["train"]
        kept = [place for place, person in enumerate(rows["person_id"]) if person not in persons]
        if len(kept) < len(rows):
            notes.append(
                f"{one.name}: left out of train: {len(rows) - len(kept):,} images (persons: {len(persons):,})"
            )
            one.rows["train"] = rows.select(kept)
        if not kept:
            raise DataError(f"{one.name}: all its training persons are held out elsewhere; leave it out")
    return notes


def _image_sets(one: TuningSet, folder: str, num_workers: int) -> list[ImageSet]:
    """The images of each split, or nothing where they are not files."""
    files: dict[str, list[tuple[str, str, int]]] = {}
    for role, split in one.splits.items():  # with select_on_test, two roles are one split
        rows = one.rows[role]
        stored = [(image["path"], image["bytes"]) for image in rows.cast_column("image", STORED)["image"]]
        if any(content is not None or path is None for path, content in stored):
            return []
        files[split] = [(path, path, person) for (path, _), person in zip(stored, rows["person_id"], strict=True)]
    every = {path: path for rows in files.values() for path, _, _ in rows}
    cache_file = os.path.join(folder, f"{one.name}.jsonl")
    facts = audit_images(every.items(), "", cache_file, num_workers, f"{one.name} images")
    training = one.splits["train"]
    return [image_set(one.name, split, split == training, rows, facts) for split, rows in files.items()]
