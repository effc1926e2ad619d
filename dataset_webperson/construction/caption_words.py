"""The words of all captions of a shard as arrays of numbers: each different word is looked at once, not each word.

Captions repeat few words very often. Split at spaces, 10,000 of them are some thousand different pieces; regular
expressions and kinds of words are tried on these, and counts follow from the numbers of the pieces.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .captions.words import TWO_WORDS, WORD, kind_of

_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost


def text_hash(text: str) -> int:
    """Spreads texts evenly over the numbers below 2 ** 64."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


@dataclass
class CaptionWords:
    """The words of captions.

    Attributes:
        count: number of captions.
        hashes (`np.ndarray` of shape `(count,)`, uint64): of each caption, in lower case.
        words: the different words, in lower case.
        word (`np.ndarray` of shape `(m,)`): the number of each word of all captions, in order.
        caption (`np.ndarray` of shape `(m,)`): the caption of each.
    """

    count: int
    hashes: np.ndarray
    words: list[str]
    word: np.ndarray
    caption: np.ndarray
    word_hashes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.word_hashes = np.array(list(map(text_hash, self.words)), np.uint64)

    @classmethod
    def of(cls, captions: pa.ChunkedArray) -> "CaptionWords":
        """The words of a column of captions."""
        texts = pa.concat_arrays([*captions.chunks, pa.array([""], pa.string())]).slice(0, len(captions))
        piece, pieces, starts = _pieces(texts)
        lengths = np.diff(starts)
        caption = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        powers = np.cumprod(np.full(max(lengths.max(initial=0), 1), _STEP))
        hashes = np.array(list(map(text_hash, pieces)), np.uint64)[piece]
        hashes *= powers[np.arange(len(piece), dtype=np.int32) - starts[caption]]

        number: dict[str, int] = {}
        inside = [[number.setdefault(word, len(number)) for word in WORD.findall(text)] for text in pieces]
        # Most pieces hold one word: the first of each, then the second of those that have two, and so on.
        word, of, where = (np.zeros(0, np.int32) for _ in range(3))
        for turn in range(max(map(len, inside), default=0)):
            table = np.array([found[turn] if turn < len(found) else -1 for found in inside], np.int32)[piece]
            has = np.flatnonzero(table >= 0).astype(np.int32)
            if turn == 0:
                word, of, where = table[has], caption[has], has
                continue
            word, of, where = (np.append(*both) for both in ((word, table[has]), (of, caption[has]), (where, has)))
            order = np.argsort(where, kind="stable")
            word, of, where = word[order], of[order], where[order]
        sums = np.zeros(len(lengths), np.uint64)
        if len(piece):
            sums[lengths > 0] = np.add.reduceat(hashes, starts[:-1][lengths > 0])
        return cls(len(lengths), sums, list(number), word, of)

    def openings(self, length: int = 3) -> np.ndarray:
        """The numbers of the first words of each caption, `(count, length)`; -1 where it has fewer."""
        found = np.full((self.count, length), -1, np.int64)
        first = np.searchsorted(self.caption, np.arange(self.count + 1))
        for place in range(length):
            has = first[:-1] + place < first[1:]
            found[has, place] = self.word[first[:-1][has] + place]
        return found

    def attributes(self) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
        """`(attribute, caption, named)`: the attribute words as `find_attributes` finds them.

        The first two are arrays of one length; `named` has the kind and the text of each attribute's number.
        """
        plain = [word.replace("’", "'") for word in self.words]
        named = [(kind_of(word), text) for word, text in zip(plain, self.words, strict=True)]
        attribute = np.array([place if kind else -1 for place, (kind, _) in enumerate(named)], np.int64)[self.word]
        places = {word: place for place, word in enumerate(plain)}
        for (first, second), kind in TWO_WORDS.items():
            if first in places and second in places:
                is_pair = (self.word[:-1] == places[first]) & (self.word[1:] == places[second])
                pairs = np.flatnonzero(is_pair & (self.caption[:-1] == self.caption[1:]))
                attribute[pairs], attribute[pairs + 1] = len(named), -1
                named.append((kind, f"{first} {second}"))
        found = attribute >= 0
        return attribute[found], self.caption[found], named


def _pieces(texts: pa.StringArray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Texts cut after each space: the number of each piece, the different pieces in lower case, where texts begin.

    The pieces are not copied: they lie in the memory of the texts, one behind the other.
    """
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int32, len(texts) + 1, texts.offset * 4)
    letters = np.frombuffer(data or b"", np.uint8)[edges[0] : edges[-1]]
    begins = np.zeros(len(letters) + 1, bool)
    begins[1:] = letters == ord(" ")
    begins[edges - edges[0]] = True
    cuts = (np.flatnonzero(begins) + edges[0]).astype(np.int32)
    starts = np.searchsorted(cuts, edges).astype(np.int32)
    cut = (
        pa.StringArray.from_buffers(len(cuts) - 1, pa.py_buffer(cuts), data)
        if len(cuts) > 1
        else pa.array([], pa.string())
    )
    encoded = cut.dictionary_encode()
    return encoded.indices.to_numpy(), [text.lower() for text in encoded.dictionary.to_pylist()], starts
