"""How well the repair study finds false words, and how often it puts the right one in."""

import json
from typing import Any

import datasets
import numpy as np

from dataset_webperson.drawn.attributes import WORDS, value_of_words
from modeling_gadms.false_words.word_detection import calibration_error, group_resamples, ranking_quality
from modeling_gadms.noise.rewriting import POSTERIOR, chosen_word, true_shares

CAPTIONS = "caption1", "caption2"


def detection(rows: datasets.Dataset, share_false: float) -> dict[str, Any]:
    """How well false words are found, and how often the right one is put in, by kinds of words; persons are drawn.

    Words that no posterior lists, because the images do not show them, stay and are false with the estimated share.
    """
    columns: dict[str, list] = {name: [] for name in ("attribute", "person", "posterior")}
    flags: dict[str, list[bool]] = {name: [] for name in ("false", "right_before", "right_after", "changed")}
    for row in rows.remove_columns("image"):
        truth = json.loads(row["attributes"])
        for name in CAPTIONS:
            posteriors = {one["start"]: one for one in row[f"{name}_{POSTERIOR}"]}
            for word in row[f"{name}_words"]:
                attribute = word["attribute"]
                said = row[name][word["start"] : word["end"]].lower()
                unlisted = {"words": [said], "probabilities": [1 - share_false]}
                one = posteriors.get(word["start"], unlisted)
                best = one["words"][chosen_word(one)]
                values = [value_of_words(attribute, text.lower()) for text in (said, best)]
                columns["attribute"].append(attribute)
                columns["person"].append(row["person_id"])
                columns["posterior"].append(1 - true_shares(one)[0])
                flags["false"].append(word["is_false"])
                flags["right_before"].append(values[0] == truth[attribute])
                flags["right_after"].append(values[1] == truth[attribute])
                flags["changed"].append(values[0] != values[1])
    found = {name: np.array(values) for name, values in (columns | flags).items()}
    is_color = np.char.endswith(found["attribute"], ".color")
    groups = {"all": np.ones(len(is_color), dtype=bool), "colours": is_color, "others": ~is_color}
    groups |= {attribute: found["attribute"] == attribute for attribute in WORDS}
    return {
        "calibration_error": calibration_error(found["posterior"], found["false"]),
        "groups": {
            name: _group({key: values[chosen] for key, values in found.items()})
            for name, chosen in groups.items()
            if len(set(found["false"][chosen])) == 2
        },
    }


def _group(found: dict[str, np.ndarray]) -> dict[str, Any]:
    weights = group_resamples(found["person"], 100)
    score, changed = found["posterior"], found["changed"]
    drawn = [ranking_quality(score, found["false"], part[None].astype(float))[0][0] for part in weights]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {
        "posterior": {"mean": ranking_quality(score, found["false"])[0], "low": low, "high": high},
        **{name: float(found[name].mean()) for name in ("right_before", "right_after", "changed")},
        "false_of_changed": float(found["false"][changed].mean()) if changed.any() else 0.0,
        "right_of_changed": float(found["right_after"][changed].mean()) if changed.any() else 0.0,
    }
