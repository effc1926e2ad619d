"""One caption as a cell of the repair study trains on it."""

import json
from typing import Any

from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.noise.rewriting import POSTERIOR, certain, repaired, repaired_with_places, true_shares

LEAST_GAIN = 0.5  # of "sure": the probability that a word gains by giving way
LIKELY = 0.5  # of "unlikely": the least probability of the likeliest word


def caption_of(cell: str, row: dict[str, Any], name: str) -> tuple[str, list[list[int]]]:
    """A row's caption as the cell trains on it, and where the words stand that it hides."""
    if cell == "deleted":
        return without_false_words(row, name), []
    if cell == "oracle":
        return repaired(row[name], true_words(row, name)), []
    posterior = row[f"{name}_{POSTERIOR}"]
    if cell == "sure":
        posterior = [one for one in posterior if max(one["probabilities"]) - one["probabilities"][0] >= LEAST_GAIN]
    text, places = repaired_with_places(row[name], posterior)
    doubtful = [max(true_shares(one)) < LIKELY for one in posterior]
    return text, [list(place) for place, hide in zip(places, doubtful, strict=True) if hide]


def mostly_doubted(posterior: list[dict[str, Any]]) -> bool:
    """Whether more than half of the words that the images show are more likely false than true."""
    return sum(true_shares(one)[0] < 0.5 for one in posterior) > len(posterior) / 2


def true_words(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A posterior that is sure of the truth, for the false words that have one."""
    truth = json.loads(row["attributes"])
    found = []
    for word in row[f"{name}_words"]:
        value = truth[word["attribute"]]
        if word["is_false"] and value != "none":
            words = WORDS[word["attribute"]][value]
            right = words[(word["start"] + row["person_id"]) % len(words)]  # all its words get their turn
            found.append(certain(word["start"], word["end"], right))
    return found


def without_false_words(row: dict[str, Any], name: str) -> str:
    caption = row[name]
    for word in sorted(row[f"{name}_words"], key=lambda word: -word["start"]):
        if word["is_false"]:
            before, after = caption[: word["start"]].rstrip(), caption[word["end"] :].lstrip()
            caption = before + after if after[:1] in (",", ".") else f"{before} {after}".strip()
    return caption
