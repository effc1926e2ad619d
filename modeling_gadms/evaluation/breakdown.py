"""Where a model finds persons and where it does not: by attribute word, caption length, camera and person."""

import os
import re
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from ..rows import all_captions
from .metrics import Evaluation, query_values
from .report_page import attribute_words, length_groups
from .significance import bootstrap_interval
from .text_table import Table

WORD, LENGTH, CAMERA, PERSON = "attribute word", "words per caption", "camera", "person"
MEASURES = ("R@1", "mAP")
NO_CAMERAS = "By camera: neither a column `camera` nor the names of the images give it."
# Market-1501's and RSTPReid's names of images (0001_c1s1_000151_01.jpg), and MSMT17's (0000_003_01_0303morning_0008_0)
_IN_NAMES = (re.compile(r"-?\d+_c(\d+)(?:s\d+)?_"), re.compile(r"\d{4}_\d{3}_(\d{2})_"))
_NUM_RESAMPLES = 2000
_SHOWN_PERSONS = 10


def cameras_of(dataset: datasets.Dataset) -> list[int] | None:
    """The camera of each image, by its column `camera` or by the names of all images; `None` where neither has it."""
    if "camera" in dataset.column_names:
        return dataset["camera"][:]
    names = [os.path.basename(path) for path in dataset["image_path"][:]]
    for pattern in _IN_NAMES:
        found = [pattern.match(name) for name in names]
        if all(found):
            return [int(match[1]) for match in found if match]
    return None


def query_groups(dataset: datasets.Dataset) -> dict[str, dict[str, np.ndarray]]:
    """By kind and name, the numbers of the captions in each group.

    Words that few captions hold (fewer than 10, or 0.5 %) are left out; lengths are in ranges of about as many
    captions each.
    """
    captions, image_index = all_captions(dataset)
    images = image_index.numpy()
    fewest = max(10, len(captions) // 200)
    words = {word: np.array(found) for word, found in sorted(attribute_words(captions).items())}
    groups = {WORD: {word: found for word, found in words.items() if len(found) >= fewest}}
    lengths = np.array([len(caption.split()) for caption in captions])
    groups[LENGTH] = {
        f"{first}-{last}" if first < last else f"{first}": np.flatnonzero((lengths >= first) & (lengths <= last))
        for first, last in length_groups(lengths)
    }
    cameras = cameras_of(dataset)
    if cameras is not None:
        of_caption = np.array(cameras)[images]
        groups[CAMERA] = {str(camera): np.flatnonzero(of_caption == camera) for camera in np.unique(of_caption)}
    return groups


def break_down(dataset: datasets.Dataset, evaluation: Evaluation, *, seed: int = 0) -> dict[str, Any]:
    """R@1 and mAP, text to image, of each group of [`query_groups`] and of each person.

    Returns:
        `groups`, a list of `by`, `group`, `queries`, `persons` and, for each measure, an `Interval`, and `notes` on
        what could not be told. Intervals resample persons, those of a single person its captions.
    """
    values = query_values(evaluation.ranks["t2i"])
    persons = evaluation.person_ids["t2i"]
    groups = query_groups(dataset)
    notes = [] if CAMERA in groups else [NO_CAMERAS]
    order = np.argsort(persons, kind="stable")
    names, starts = np.unique(persons[order], return_index=True)
    groups[PERSON] = {str(name): found for name, found in zip(names, np.split(order, starts[1:]), strict=True)}
    rows = []
    for kind, members in groups.items():
        for name, found in members.items():
            own = None if kind == PERSON else persons[found]
            row = {"by": kind, "group": name, "queries": len(found), "persons": len(np.unique(persons[found]))}
            for measure in MEASURES:
                row[measure] = bootstrap_interval(
                    values[measure][found], groups=own, num_resamples=_NUM_RESAMPLES, seed=seed
                )
            rows.append(row)
    return {"groups": rows, "notes": notes}


def breakdown_table(found: Mapping[str, Any], title: str) -> Table:
    """The groups of [`break_down`]; words from the hardest on, and of the persons those that are found least."""
    rows = []
    for kind in (WORD, LENGTH, CAMERA, PERSON):
        part = [row for row in found["groups"] if row["by"] == kind]
        if kind in (WORD, PERSON):
            part.sort(key=lambda row: (row["R@1"].mean, row["mAP"].mean))
        for row in part[:_SHOWN_PERSONS] if kind == PERSON else part:
            cells = [f"{row[name].mean:.2f} [{row[name].low:.1f}, {row[name].high:.1f}]" for name in MEASURES]
            rows.append([kind, row["group"], f"{row['queries']:,}", f"{row['persons']:,}", *cells])
    persons = [row["R@1"].mean for row in found["groups"] if row["by"] == PERSON]
    never, always = (sum(value == bound for value in persons) for bound in (0, 100))
    of_persons = (
        f"Of {len(persons):,} persons, {never:,} are first for none of their captions and {always:,} for all; those "
        "found least are shown, and results.json has all."
    )
    columns = ["by", "group", "captions", "persons", *MEASURES]
    return Table(title, columns, rows, words=2, notes=[of_persons, *found["notes"]])
