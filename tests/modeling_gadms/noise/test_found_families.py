"""Families of words found in captions: neighbours and synonyms, against slow counting and in captions made up here."""

import math
import random
import sys
from collections import Counter

import numpy as np
import pytest

from dataset_webperson import DataError
from modeling_gadms.noise.found_families import _vectors, find_families

COLOURS = [("grey", "gray"), ("red", "scarlet"), ("blue",), ("lemon yellow",)]
THINGS = [("coat",), ("shirt", "tee"), ("dress",), ("slacks", "trousers")]


def captions_of(count, noise=0.0, seed=0):
    """Two captions of each of many pictures, which may be wrong about a colour."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        colour, thing, of_image = draw.choice(COLOURS), draw.choice(THINGS), []
        for verb in ("wears", "has on"):
            said = draw.choice(COLOURS) if draw.random() < noise else colour
            of_image.append(f"Somebody {verb} a {draw.choice(said)} {draw.choice(thing)}, and walks.")
        found.append(of_image)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_words_of_one_place_are_a_family_and_those_of_one_picture_are_synonyms(noise):
    found = find_families(captions_of(3000, noise))
    values = {frozenset(map(frozenset, family.values.values())) for family in found.values()}
    for expected in (COLOURS, THINGS):
        assert frozenset(map(frozenset, expected)) in values
    for name, family in found.items():
        assert name == next(iter(family.values)) and all(words[0] == value for value, words in family.values.items())
    sizes = [len(family.value_of) for family in found.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_without_a_second_caption_no_synonyms_are_told():
    found = find_families([of_image[:1] for of_image in captions_of(600)])
    family = next(family for family in found.values() if "red" in family.value_of)
    assert {len(words) for words in family.values.values()} == {1} and "gray" in family.values


def test_vectors_are_what_slow_counting_gives():
    draw = random.Random(1)
    texts = [[draw.choice("abcdefg") for _ in range(draw.randint(1, 6))] for _ in range(30)]
    words = ["c", "a", "e"]
    together, of_word, of_feature = Counter(), Counter(), Counter()
    for text in texts:
        for place, word in enumerate(text):
            if word in words:
                for distance in (-2, -1, 1, 2):
                    other = text[place + distance] if 0 <= place + distance < len(text) else ""
                    together[word, (distance, other)] += 1
                    of_word[word] += 1
                    of_feature[distance, other] += 1
    total = sum(of_word.values())
    slow = [
        [
            max(math.log(together[word, one] * total / (of_word[word] * of_feature[one])), 0.0)
            if together[word, one]
            else 0.0
            for one in of_feature
        ]
        for word in words
    ]
    # the columns are in the order of their first appearance
    np.testing.assert_allclose(_vectors(texts, words), slow, atol=1e-12)


def test_captions_that_share_no_places_are_refused():
    with pytest.raises(DataError, match="0 words are said 20 times"):
        find_families([["a red coat", "a blue coat"]])
    with pytest.raises(DataError, match="no two words stand between the same neighbours; lower similarity=0.99"):
        find_families(captions_of(600), similarity=0.99)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(DataError, match="needs scikit-learn: pip install scikit-learn"):
        find_families(captions_of(600))
