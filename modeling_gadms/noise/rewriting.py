"""Puts other words into a caption, in places and with probabilities that a column of the data set lists."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..tokenization_gadms import clean_with_capitals

POSTERIOR = "posterior"  # suffix of the columns that list words and their probabilities
AS_FOUND = "as_found"  # suffix of the columns that keep a caption that was repaired
_BEGINS_WITH_VOWEL = re.compile(r"(?!one\b|eu|uni[cfoqstv]|us[aeiu])[aeiou]|heir|honest|honou?r|hour", re.IGNORECASE)


def repaired(caption: str, posterior: Sequence[Mapping[str, Any]], draws: Sequence[float] | None = None) -> str:
    """The caption with the likeliest word in each place or, given a number in [0, 1) for each, with words drawn.

    An article before a word becomes the one that it needs; a first letter, and a word of capitals, keep their case.

    >>> posterior = [{"start": 2, "end": 5, "words": ["red", "orange"], "probabilities": [0.3, 0.7]}]
    >>> repaired("A red coat", posterior)
    'An orange coat'
    >>> repaired("A red coat", posterior, draws=[0.2])
    'A red coat'
    """
    return repaired_with_places(caption, posterior, draws)[0]


def repaired_with_places(
    caption: str, posterior: Sequence[Mapping[str, Any]], draws: Sequence[float] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """What [`repaired`] gives, and where the words of its places stand then: start and end, end excluded.

    >>> repaired_with_places("A red coat", [certain(2, 5, "orange")])
    ('An orange coat', [(3, 9)])
    """
    lengths, to_end = [], []
    for number in reversed(range(len(posterior))):
        one = posterior[number]
        start, end = one["start"], one["end"]
        to_end.append(len(caption) - end)  # what follows has its final length already
        chosen = chosen_word(one, None if draws is None else draws[number])
        lengths.append(len(one["words"][chosen]) if chosen else end - start)
        if chosen:
            caption = _replaced(caption, start, end, one["words"][chosen])
    ends = [len(caption) - rest for rest in reversed(to_end)]
    return caption, [(end - length, end) for end, length in zip(ends, reversed(lengths), strict=True)]


def certain(start: int, end: int, word: str) -> dict[str, Any]:
    """A posterior of one place that is sure of a word."""
    return {"start": start, "end": end, "words": ["", word], "probabilities": [0.0, 1.0]}


def chosen_word(one: Mapping[str, Any], draw: float | None = None) -> int:
    """The number of the likeliest word of a place or, given a number in [0, 1), of one drawn by its probability."""
    probabilities = np.asarray(one["probabilities"], dtype=np.float64)
    if draw is None:
        return int(probabilities.argmax())
    return min(int(np.searchsorted(probabilities.cumsum(), draw, side="right")), len(probabilities) - 1)


def shares_letters(place: Mapping[str, Any], start: int, end: int) -> bool:
    """Whether a place has a letter between `start` and `end`, end excluded."""
    return place["start"] < end and start < place["end"]


def true_shares(one: Mapping[str, Any]) -> list[float]:
    """How likely each word of a place is to be true, also where nothing of the kind may be there."""
    return [share * (1 - (one.get("absent") or 0.0)) for share in one["probabilities"]]


def _replaced(caption: str, start: int, end: int, word: str) -> str:
    loud = caption[start:end].isupper() and end - start > 1
    if loud or caption[start].isupper():
        capital = word.upper() if loud else word[0].upper() + word[1:]
        word = capital if len(capital) == len(word) else word  # places count the letters of the word as it is listed
    before, after = caption[:start], caption[end:]
    if article := re.search(r"\b([Aa])[Nn]? $", before):
        n = "N" if loud and article[1] == "A" else "n"
        before = before[: article.start()] + article[1] + (f"{n} " if _BEGINS_WITH_VOWEL.match(word) else " ")
    return before + word + after


def as_cleaned(caption: str) -> str:
    """The caption with the places of its cleaned form, and with its capitals.

    >>> as_cleaned("A RED coat &amp; a  hat")
    'A RED coat & a hat'
    """
    tidy = clean_with_capitals(caption)
    return tidy if len(tidy.lower()) == len(tidy) else tidy.lower()  # letters whose lower case is longer move places
