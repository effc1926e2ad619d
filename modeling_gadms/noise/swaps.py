"""Swaps: copies of a caption in which a word gives way to another value of its family, to learn to tell from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from dataset_webperson import DataError

from ..rows import all_captions
from .rewriting import certain, chosen_word, repaired, shares_letters, true_shares
from .word_families import Family, SaidWord, find_words, plain_families

Believed = Mapping[int, Mapping[str, float]]
_LOOKED_AT = 1000  # captions, before nothing is found to swap


@dataclass(frozen=True)
class Swap:
    """A copy of a caption, and how surely it is false: 0 where nothing could be swapped."""

    caption: str
    weight: float


def swaps(
    caption: str,
    words: Sequence[SaidWord],
    families: Mapping[str, Family],
    count: int,
    generator: torch.Generator,
    drawn: Mapping[int, Mapping[str, Any]] | None = None,
    believed: Believed | None = None,
) -> list[Swap]:
    """Copies of a caption, each with one word swapped.

    Places are drawn without repetition while there are enough of them, then a value among the others of the family,
    all equally likely, and one of its words.

    Args:
        words (`Sequence[SaidWord]`): where the caption says which value, from left to right.
        generator (`torch.Generator`): decides all.
        drawn (`Mapping[int, Mapping]`, *optional*): by `start`, places where another word stands than the caption
            says, from [`drawn_words`]; `words` then has their values.
        believed (`Mapping[int, Mapping[str, float]]`, *optional*): for a place, by `start`, how likely each value is
            to be true; a copy weighs 1 less that of the value that it says. What is not listed is certainly false.
    """
    drawn, believed = drawn or {}, believed or {}
    words = [word for word in words if len(families[word.family].values) > 1]
    order = torch.randperm(len(words), generator=generator).tolist()
    draws = torch.rand(count, 2, generator=generator).tolist()
    found = []
    for number, (of_value, of_word) in enumerate(draws):
        if not words:
            found.append(Swap(caption, 0.0))
            continue
        word = words[order[number % len(words)]]
        family = families[word.family]
        others = [value for value in family.values if value != word.value]
        value = others[int(of_value * len(others))]
        synonyms = family.values[value]
        swapped = certain(word.start, word.end, synonyms[int(of_word * len(synonyms))])
        places = {**drawn, word.start: swapped}
        copy = repaired(caption, [places[start] for start in sorted(places)])
        found.append(Swap(copy, 1.0 - believed.get(word.start, {}).get(value, 0.0)))
    return found


def drawn_words(
    posterior: Sequence[Mapping[str, Any]],
    draws: Sequence[float],
    said: Sequence[SaidWord],
    families: Mapping[str, Family],
) -> tuple[list[SaidWord], dict[int, dict[str, Any]]]:
    """The values that a caption says once its words are drawn as `repaired` draws them, and what changes it so.

    Args:
        said: the values that the caption says as it is.

    Returns:
        Places and values from left to right, where nothing is drawn as they are said, and by `start` a posterior sure
        of the drawn word where it is not the one said.
    """
    words: list[SaidWord] = []
    drawn: dict[int, dict[str, Any]] = {}
    for one, draw in zip(posterior, draws, strict=True):
        number = chosen_word(one, draw)
        word, family = one["words"][number], _family_of(one, said, families)
        if family and (value := families[family].value_of.get(word.lower())):
            words.append(SaidWord(one["start"], one["end"], family, value))
        if number:
            drawn[one["start"]] = certain(one["start"], one["end"], word)
    words += [word for word in said if not any(shares_letters(one, word.start, word.end) for one in posterior)]
    return sorted(words, key=lambda word: word.start), drawn


def beliefs(
    posterior: Sequence[Mapping[str, Any]], said: Sequence[SaidWord], families: Mapping[str, Family]
) -> dict[int, dict[str, float]]:
    """How likely each value is to be true in each place of a posterior, by `start`; `said` as in [`drawn_words`]."""
    found: dict[int, dict[str, float]] = {}
    for one in posterior:
        family = _family_of(one, said, families)
        values = families[family].value_of if family else {}
        for word, probability in zip(one["words"], true_shares(one), strict=True):
            if value := values.get(word.lower()):
                of_place = found.setdefault(one["start"], {})
                of_place[value] = of_place.get(value, 0.0) + probability
    return found


def _family_of(one: Mapping[str, Any], said: Sequence[SaidWord], families: Mapping[str, Family]) -> str | None:
    """The family of a place, by what is said there where the place names one of other families."""
    if one["family"] in families:
        return one["family"]
    there = (word.family for word in said if (word.start, word.end) == (one["start"], one["end"]))
    return next(there, None)


def refuse_nothing_to_swap(dataset: datasets.Dataset) -> None:
    """Refuse a training set whose captions name no value of any family.

    Raises:
        DataError: says which families were looked for.
    """
    captions, _ = all_captions(dataset.select(range(min(len(dataset), _LOOKED_AT))))
    families = plain_families()
    if not any(find_words(caption, families) for caption in captions):
        raise DataError(
            f"swap_negatives: none of the first {len(captions)} captions names a value of {', '.join(families)}, so "
            "there is nothing to swap: leave it out"
        )
