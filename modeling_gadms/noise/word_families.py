"""Families of words that could stand in each other's place in a caption, and where a caption names them."""

import functools
import json
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import WORDS
from dataset_webperson.files import write_json

from ..tokenization_gadms import clean_caption


@dataclass(frozen=True)
class Family:
    """What may be said in one place.

    Attributes:
        values (`dict[str, tuple[str, ...]]`): value -> the words for it, lower case. "grey" and "gray" are one value.
    """

    values: dict[str, tuple[str, ...]]

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
    """The same for captions whose words are not listed: one family of colours, and each word in one family alone."""
    colors = [name for name in WORDS if name.endswith(".color")]
    ordered = ["top.color", *(name for name in colors if name != "top.color"), *(n for n in WORDS if n not in colors)]
    families: dict[str, dict[str, tuple[str, ...]]] = {}
    taken: set[str] = set()
    for name in ordered:
        values = families.setdefault("color" if name in colors else name, {})
        for value, words in WORDS[name].items():
            if free := tuple(word for word in words if word not in taken):
                values[value] = values.get(value, ()) + free
                taken |= set(free)
    return {name: Family(values) for name, values in families.items()}


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
        DataError: the file is not such JSON or names no family, a family has fewer than two values or one without
            words, or a word stands for two values of a family; names the family and the word.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
        families = {
            name: Family({value: _cleaned(words) for value, words in one["values"].items()})
            for name, one in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f'{file}: not families of words ({error!r}); write {{"color": {{"values": {{"red": ["red", "scarlet"], '
            '"blue": ["blue"]}}}'
        ) from error
    if not families:
        raise DataError(f"{file}: names no family, so no word is wrong")
    for name, family in families.items():
        if unsaid := [value for value, words in family.values.items() if not words or "" in words]:
            raise DataError(f"{file}: family {name}: {unsaid[0]!r} has no word, or an empty one; take it out")
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


def _cleaned(words: Any) -> tuple[str, ...]:
    """Words as captions are searched for them."""
    if not isinstance(words, list):
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
    """Words of families in a caption, whole words alone, the longest first; a word of two families is of the former.

    >>> families = {"color": Family({"blue": ("blue",), "navy": ("navy", "dark blue")})}
    >>> [(word.start, word.end, word.value) for word in find_words("A dark blue coat, bluebells", families)]
    [(2, 11, 'navy')]
    """
    owners: dict[str, tuple[str, str]] = {}
    for name, family in families.items():
        for word, value in family.value_of.items():
            owners.setdefault(word, (name, value))
    # letter by letter: lower case has as many letters as the caption, and "\u017f" is no "s"
    lower = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in caption)
    return [
        SaidWord(match.start(), match.end(), *owners[match[0]]) for match in _pattern(tuple(owners)).finditer(lower)
    ]


@functools.lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])")
