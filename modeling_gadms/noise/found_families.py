"""Finds families of words in captions: words between the same neighbours, and which of them are synonyms.

Two words that could stand in each other's place have the same neighbours: "a red coat", "a blue coat". The two words
before and after each word are counted, each place by itself, and weighed by their positive pointwise mutual
information (Church and Hanks, 1990; as vectors of words: Levy and Goldberg, 2014); words whose vectors have a high
cosine form a family, by average linkage.

Neighbours cannot tell "grey" and "gray" from "grey" and "red". Images can: two captions of one image say the same
thing, so synonyms of a family meet in them as often as a word meets itself. What comes out is a draft for people to
read and correct: [`read_families`] takes the file as it is edited.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dataset_webperson import DataError

from .word_families import Family

REACH = 2  # words on each side
MOST_SHARE = 0.4  # of the captions: words in more of them join the others, and say nothing of a person
JOINED = 0.9  # share of a word's places in which the same word follows or precedes it: both are one
SYNONYMS = 0.8  # share of its own meetings with itself that a word must have with another
LEAST_MEETINGS = 5.0  # expected of two words that have nothing to do with each other, or nothing is said of them
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*|[.,;:!?]")


def find_families(
    captions: Sequence[Sequence[str]], least_count: int = 20, similarity: float = 0.5
) -> dict[str, Family]:
    """Families of the words of captions.

    Args:
        captions (`Sequence[Sequence[str]]`): for each image its captions; with one caption each no synonyms are found.
        least_count (`int`): words said less often are left out.
        similarity (`float`): mean cosine, 0 to 1, above which two groups of words are one family.

    Returns:
        `dict[str, Family]` by the commonest word of each, the largest family first; a family has two values or more,
        and a value has its synonyms, the commonest first.

    Raises:
        DataError: no two words stand between the same neighbours, or scikit-learn is missing.
    """
    try:
        from sklearn.cluster import AgglomerativeClustering
    except ImportError as error:
        raise DataError("grouping words into families needs scikit-learn: pip install scikit-learn") from error

    said = _with_joined([[_words(caption) for caption in of_image] for of_image in captions], least_count)
    texts = _flat(said)
    counts = Counter(word for caption in texts for word in caption)
    in_captions = Counter(word for caption in texts for word in set(caption))
    words = sorted(
        (
            word
            for word, count in counts.items()
            if count >= least_count and in_captions[word] <= MOST_SHARE * len(texts) and word[0].isalnum()
        ),
        key=lambda word: (-counts[word], word),
    )
    if len(words) < 2:
        raise DataError(f"{len(words)} words are said {least_count} times or more: give more captions")
    vectors = _vectors(texts, words)
    labels = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - similarity
    ).fit_predict(vectors)
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        groups.setdefault(label, []).append(place)
    lift, found = _lift(said, words), {}
    for group in sorted(groups.values(), key=len, reverse=True):  # those of one length stay in the order of words
        values = [[words[place] for place in value] for value in _values(group, lift)]
        if len(values) > 1:
            found[words[group[0]]] = Family({value[0]: tuple(value) for value in values})
    if not found:
        raise DataError(f"no two words stand between the same neighbours; lower similarity={similarity}")
    return found


def _words(caption: str) -> list[str]:
    return _WORD.findall(caption.lower())


def _flat(said: list[list[list[str]]]) -> list[list[str]]:
    return [caption for of_image in said for caption in of_image]


def _with_joined(said: list[list[list[str]]], least_count: int) -> list[list[list[str]]]:
    """Captions with words joined that hardly ever stand apart: "lemon yellow"."""
    texts = _flat(said)
    counts = Counter(word for caption in texts for word in caption)
    pairs = Counter(pair for caption in texts for pair in itertools.pairwise(caption))
    joined = {
        pair
        for pair, count in pairs.items()
        if count >= least_count
        and all(word[0].isalnum() for word in pair)
        and count >= JOINED * min(counts[word] for word in pair)
        and max(counts[word] for word in pair) <= MOST_SHARE * len(texts)
    }

    def join(caption: list[str]) -> list[str]:
        found: list[str] = []
        for word in caption:
            if found and (found[-1], word) in joined:
                found[-1] += f" {word}"
            else:
                found.append(word)
        return found

    return [[join(caption) for caption in of_image] for of_image in said]


def _vectors(texts: Iterable[list[str]], words: Sequence[str]) -> np.ndarray:
    """`(words, features)`: positive pointwise mutual information with each neighbour at each distance."""
    number = {word: place for place, word in enumerate(words)}
    features: dict[tuple[int, str], int] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for caption in texts:
        padded = [""] * REACH + caption + [""] * REACH
        for place, word in enumerate(caption, REACH):
            if word in number:
                for distance in (*range(-REACH, 0), *range(1, REACH + 1)):
                    feature = features.setdefault((distance, padded[place + distance]), len(features))
                    counts[number[word], feature] += 1
    table = np.zeros((len(words), len(features)))
    for (row, column), count in counts.items():
        table[row, column] = count
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(table / expected), 0.0)


def _lift(said: list[list[list[str]]], words: Sequence[str]) -> np.ndarray:
    """`(words, words)`: how much more often two words stand in two captions of an image than in any two captions.

    0 where they would hardly meet by chance, and where no image has a second caption: nothing is said of them then.
    """
    number = {word: place for place, word in enumerate(words)}
    texts = _flat(said)
    ends = list(itertools.accumulate(map(len, said)))
    table = np.zeros((len(texts), len(words)))
    for row, caption in enumerate(texts):
        table[row, [number[word] for word in caption if word in number]] = 1.0
    sides = [
        pair
        for end, of_image in zip(ends, said, strict=True)
        for pair in itertools.permutations(range(end - len(of_image), end), 2)
    ]
    if not sides:
        return np.zeros((len(words), len(words)))
    first, second = (table[list(side)] for side in zip(*sides, strict=True))
    expected = np.outer(first.sum(axis=0), second.sum(axis=0)) / len(sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected >= LEAST_MEETINGS, first.T @ second / expected, 0.0)


def _values(group: list[int], lift: np.ndarray) -> list[list[int]]:
    """The words of a family as values: words that meet each other as often as themselves are one."""
    values: list[list[int]] = []
    for word in group:
        for value in values:
            own = np.sqrt(lift[word, word] * lift[value, value])
            if (own > 1).all() and (lift[word, value] >= SYNONYMS * own).all():
                value.append(word)
                break
        else:
            values.append([word])
    return values
