"""Families of words that could stand in each other's place in a caption, and where a caption names them."""

import functools
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import COLOR_WORDS, WORDS
from dataset_webperson.files import write_json

from ..tokenization_gadms import clean_caption

HAIR = {"hair.color": ("hair", "ponytail"), "hair.length": ("hair", "head")}
# words of cloth that are said of hair too
_ALSO_OF_HAIR = {"brown": ("chocolate brown",), "ginger": ("bright red",)}
_BREAKS = (
    "a an the his her their with in on of at by for to over under has have having wears wearing who is whose that "
    "which while holding carrying sporting"
).split()
# a word that comes after one of these is not of hair if a comma follows
_WORN = re.compile(r"(?<!\w)(?:in|wearing|wears|wore|all|and|or)\s$")


@dataclass(frozen=True)
class Family:
    """What may be said in one place.

    Attributes:
        values (`dict[str, tuple[str, ...]]`): value -> the words for it, lower case. "grey" and "gray" are one value.
        before (`tuple[str, ...]`): nouns of which one has to follow where captions are searched, with two words at
            most between, or the word is not meant: "long" speaks of hair in "long, dark hair", not in "long trousers".
    """

    values: dict[str, tuple[str, ...]]
    before: tuple[str, ...] = ()

    @functools.cached_property
    def value_of(self) -> dict[str, str]:
        """Word -> the value that it stands for."""
        return {word: value for value, words in self.values.items() for word in words}


@dataclass(frozen=True)
class SaidWord:
    """`caption[start:end]` says a value of a family."""

    start: int
    end: int
    family: str
    value: str


def drawn_families() -> dict[str, Family]:
    """The families of drawn captions: one for each attribute, by the names of their word columns."""
    return {name: Family(values) for name, values in WORDS.items()}


def plain_families() -> dict[str, Family]:
    """The same for captions whose words are not listed: one family of colours, and what is said of hair by its noun.

    A brown coat is not brunette, nor has a person with long trousers long hair.
    """
    hair = {value: words + _ALSO_OF_HAIR.get(value, ()) for value, words in WORDS["hair.color"].items()}
    names = {name: "color" if values is COLOR_WORDS else name for name, values in WORDS.items()}
    return {names[name]: Family(values, HAIR.get(name, ())) for name, values in {**WORDS, "hair.color": hair}.items()}


def families_for(columns: list[str], file: str | None = None) -> dict[str, Family]:
    """The families of a file or, by default, those that fit a data set: whether its words are listed decides."""
    if file is not None:
        return read_families(file)
    return drawn_families() if lists_attributes(columns, "caption1") else plain_families()


def lists_attributes(columns: Container[str], caption: str) -> bool:
    """Whether the words of a caption are listed with their attributes, as those of drawn captions are.

    The quality stage of a construction lists words too, in a column of the same name: with their scores.
    """
    return f"{caption}_words" in columns and f"{caption}_word_score" not in columns


def write_families(families: Mapping[str, Family], file: str) -> None:
    """Families as JSON that people can read and edit."""
    write_json(file, {name: asdict(family) for name, family in families.items()})


def read_families(file: str) -> dict[str, Family]:
    """Families from the JSON of [`write_families`].

    Raises:
        DataError: the file is not such JSON, names no family or anything twice, a family has fewer than two values or
            one without words, a word stands for two values of a family, or a noun is empty; names family and word.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened, object_pairs_hook=_named_once)
        families = {name: _family(**one) for name, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{file}: not families of words ({error!r}); write {{"color": {{"values": {{"red": ["red", "scarlet"], '
            '"blue": ["blue"]}}}'
        ) from error
    if not families:
        raise DataError(f"{file}: names no family, so no word is wrong")
    for name, family in families.items():
        if unsaid := [value for value, words in family.values.items() if not words or "" in words]:
            raise DataError(f"{file}: family {name}: {unsaid[0]!r} has no word, or an empty one; take it out")
        if "" in family.before:
            raise DataError(f"{file}: family {name}: before has an empty word; take it out")
        if len(family.values) < 2:
            raise DataError(
                f"{file}: family {name} has {len(family.values)} values; two are needed, or no word is wrong"
            )
        seen: dict[str, str] = {}
        for value, words in family.values.items():
            for word in words:
                if seen.setdefault(word, value) != value:
                    raise DataError(
                        f"{file}: family {name}: {word!r} stands for {seen[word]} and for {value}; keep one"
                    )
    return families


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names must differ: of two alike all but the last would be lost."""
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in one place; join the two, or rename one")
    return dict(pairs)


def _family(values: Any, before: Any = None) -> Family:
    """A family of what JSON has under its name; another key than these two is no argument."""
    nouns = () if before is None else _cleaned(before)
    return Family({value: _cleaned(words) for value, words in values.items()}, nouns)


def _cleaned(words: Any) -> tuple[str, ...]:
    """Words as captions are searched for them."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{words!r} is no list of words")
    return tuple(map(clean_caption, words))


def said_words(row: Mapping[str, Any], column: str, families: Mapping[str, Family]) -> list[SaidWord]:
    """The words of a row's caption that belong to families, from left to right.

    Where the row lists its attribute words (`caption1_words`) and families have the names of attributes, these words
    count, each in the family of its attribute; the truth that is listed beside them is not looked at. Elsewhere the
    caption is searched (see [`find_words`]).
    """
    caption, listed = row[column], row.get(f"{column}_words")
    if listed is None or not lists_attributes(row, column) or not WORDS.keys() >= families.keys():
        return find_words(caption, families)
    found = []
    for word in listed:
        values = families[word["attribute"]].value_of if word["attribute"] in families else {}
        text = caption[word["start"] : word["end"]].lower()
        if text in values:
            found.append(SaidWord(word["start"], word["end"], word["attribute"], values[text]))
    return found


def find_words(caption: str, families: Mapping[str, Family]) -> list[SaidWord]:
    """Words of families in a caption, whole words alone, the longest first.

    A word of two families is of the former, but of one that asks for a noun (`before`) where that follows.

    >>> families = {"color": Family({"blue": ("blue",), "navy": ("navy", "dark blue")})}
    >>> [(word.start, word.end, word.value) for word in find_words("A dark blue coat, bluebells", families)]
    [(2, 11, 'navy')]
    """
    owners: dict[str, list[tuple[str, str]]] = {}
    for name, family in sorted(families.items(), key=lambda item: not item[1].before):
        for word, value in family.value_of.items():
            owners.setdefault(word, []).append((name, value))
    # letter by letter: lower case has as many letters as the caption, and "\u017f" is no "s"
    lower = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in caption)
    pattern, found, place = _pattern(tuple(owners)), [], 0
    while match := pattern.search(lower, place):
        start, place = match.start(), match.start() + 1
        for word in _beginnings(match[0], owners):
            end = start + len(word)
            if owner := next((one for one in owners[word] if _is_meant(lower, start, end, families[one[0]])), None):
                found.append(SaidWord(start, end, *owner))
                place = end
                break
    return found


def _beginnings(text: str, words: Iterable[str]) -> Iterator[str]:
    """A word, and the words that it begins with, the longest first: "light" where "light brown" is not meant."""
    yield text
    if " " in text:
        yield from sorted((word for word in words if text.startswith(f"{word} ")), key=len, reverse=True)


def _is_meant(lower: str, start: int, end: int, family: Family) -> bool:
    """Whether the noun that the family asks for follows: in "black, long hair", but not in "in black, long hair"."""
    if not family.before:
        return True
    return bool(_noun(family.before, not _WORN.search(lower, 0, start)).match(lower, end))


@functools.lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])")


@functools.lru_cache(maxsize=8)
def _noun(nouns: tuple[str, ...], commas: bool) -> re.Pattern[str]:
    """One of the nouns, after two words at most that go on with what is said: in "black with long hair" none does."""
    comma = r"\s*,?" if commas else ""
    between = r"(?:\s*/\s*|\s+)"
    words = rf"(?:{between}(?!(?:{'|'.join(_BREAKS)})\b)[\w-]+){{0,2}}"
    return re.compile(rf"{comma}{words}{between}(?:{'|'.join(map(re.escape, nouns))})(?![\w-])")
