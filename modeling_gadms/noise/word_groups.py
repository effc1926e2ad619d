"""Groups of the words of captions whose false ones may be easier or harder to find than others."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from ..false_words.word_detection import ranking_quality
from ..rows import caption_columns, told_attributes

THIRDS = "first third", "middle third", "last third"


def word_groups(rows: datasets.Dataset) -> dict[str, np.ndarray]:
    """Which words belong to each group, bool `(N,)`: image after image, and of each image caption after caption.

    - `first third`, ...: of the caption's characters, by where the word begins;
    - `rare words`, `common words`: said less often than the median word of their attribute, or at least as often;
    - `wrong in both`, `wrong in one`: false words whose attribute another caption of the image has false too, or true
      alone, each among the true words of attributes that several captions name;
    - `things made up`, `things of wrong value`: false words about what is not there, or is otherwise, each among the
      true words of the attributes that may be made up; only where `attributes` lists the truth.

    Args:
        rows (`datasets.Dataset`): with columns `caption1`, `caption1_words`, ...
    """
    names = caption_columns(rows.column_names)
    texts = rows.remove_columns("image") if "image" in rows.column_names else rows
    words = [_described(row, name, word, names) for row in texts for name in names for word in row[f"{name}_words"]]
    is_false = np.array([word["is_false"] for word in words], dtype=bool)
    third = np.array([word["third"] for word in words])
    found = {title: third == number for number, title in enumerate(THIRDS)}

    attributes = np.array([word["attribute"] for word in words])
    counts = Counter((word["attribute"], word["text"]) for word in words)
    said = np.array([counts[word["attribute"], word["text"]] for word in words])
    rare = np.zeros(len(words), dtype=bool)
    for attribute in np.unique(attributes):  # or the attributes that have few words would be compared with the others
        own = attributes == attribute
        rare[own] = said[own] < np.median(said[own])
    found |= {"rare words": rare, "common words": ~rare}

    elsewhere = [word["false_elsewhere"] for word in words]  # None where no other caption names the attribute
    named = np.array([one is not None for one in elsewhere])
    both = np.array([bool(one) for one in elsewhere])
    found |= {
        "wrong in both": named & (both | ~is_false),
        "wrong in one": named & ~(both & is_false),
    }
    if "attributes" in rows.column_names:
        made_up = np.array([word["is_absent"] for word in words]) & is_false
        may_be = np.isin(attributes, np.unique(attributes[made_up]))
        found |= {
            "things made up": may_be & (made_up | ~is_false),
            "things of wrong value": may_be & ~made_up,
        }
    return found


def by_group(scores: np.ndarray, is_false: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """AUROC of scores within each group, and its numbers of words; None where all are true, or all false."""
    result: dict[str, dict[str, Any]] = {}
    for name, chosen in groups.items():
        auroc = float(ranking_quality(scores[chosen], is_false[chosen])[0])
        counts = {"num_words": int(chosen.sum()), "num_false": int(is_false[chosen].sum())}
        result[name] = {"AUROC": None if np.isnan(auroc) else auroc, **counts}
    return result


def _described(row: Mapping[str, Any], name: str, word: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """What the groups need to know of a word."""
    others = [
        other["is_false"]
        for other_name in names
        if other_name != name
        for other in row[f"{other_name}_words"]
        if other["attribute"] == word["attribute"]
    ]
    truth = told_attributes(row)
    return {
        "attribute": word["attribute"],
        "is_false": word["is_false"],
        "text": row[name][word["start"] : word["end"]].lower(),
        "third": min(3 * word["start"] // max(len(row[name]), 1), 2),
        "false_elsewhere": any(others) if others else None,
        "is_absent": truth.get(word["attribute"]) == "none",
    }
