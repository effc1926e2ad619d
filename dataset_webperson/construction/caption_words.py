"""The words of all captions of a shard as arrays of numbers: each different word is looked at once, not each word.

Captions repeat few words very often. Split at spaces, 10,000 of them are some thousand different pieces; regular
expressions and kinds of words are tried on these, and counts follow from the numbers of the pieces. The numbers lie in
blocks: passes over arrays that stay in the processor's cache are much faster.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from .captions.words import TWO_WORDS, WORD, kind_of

_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost
_BLOCK = 1_000  # captions


def text_hash(text: str) -> int:
    """Spreads texts evenly over the numbers below 2 ** 64."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


@dataclass
class Block:
    """The words of consecutive captions.

    Attributes:
        first: the number of the first caption.
        word (`np.ndarray` of shape `(m,)`, int32): the number of each word, in order.
        starts (`np.ndarray` of shape `(captions + 1,)`): where in `word` each caption begins, and the last one ends.
    """

    first: int
    word: np.ndarray
    starts: np.ndarray

    @cached_property
    def caption(self) -> np.ndarray:
        """The number of the caption of each word, int32."""
        numbers = np.arange(self.first, self.first + len(self.starts) - 1, dtype=np.int32)
        return np.repeat(numbers, np.diff(self.starts))

    def of(self, captions: np.ndarray) -> np.ndarray:
        """What an array with a value for each caption of all blocks holds for those of this one."""
        return captions[self.first : self.first + len(self.starts) - 1]


@dataclass
class CaptionWords:
    """The words of captions.

    Attributes:
        hashes (`np.ndarray` of shape `(captions,)`, uint64): of each caption, in lower case.
        words: the different words, in lower case.
        blocks: the words of the captions, in order.
    """

    hashes: np.ndarray
    words: list[str]
    blocks: list[Block]
    word_hashes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.word_hashes = np.array(list(map(text_hash, self.words)), np.uint64)

    @classmethod
    def of(cls, captions: pa.ChunkedArray) -> "CaptionWords":
        """The words of a column of captions."""
        texts = pa.concat_arrays([*captions.chunks, pa.array([""], pa.string())]).slice(0, len(captions))
        cut, pieces = _pieces(texts)
        piece_hashes = np.array(list(map(text_hash, pieces)), np.uint64)
        number: dict[str, int] = {}
        inside = [[number.setdefault(word, len(number)) for word in WORD.findall(text)] for text in pieces]
        held = np.array(list(map(len, inside)), np.int32)
        first = np.array([found[0] if found else -1 for found in inside], np.int32)
        is_odd = held != 1
        powers = np.cumprod(np.full(max((len(piece) for piece, _ in cut), default=0), _STEP))
        inverses = np.cumprod(np.full(len(powers), pow(int(_STEP), -1, 2**64), np.uint64))
        sums, blocks = np.zeros(len(texts), np.uint64), []
        for turn, (piece, starts) in enumerate(cut):
            # Each piece's hash by the power of its place in the caption: by that in the block, which is one pass less,
            # and back by that of the place before the caption.
            if len(piece):
                filled = np.flatnonzero(np.diff(starts))
                found = np.add.reduceat(piece_hashes[piece] * powers[: len(piece)], starts[filled])
                later = filled[starts[filled] > 0]
                sums[turn * _BLOCK + filled] = found
                sums[turn * _BLOCK + later] *= inverses[starts[later] - 1]

            word, odd = first[piece], np.flatnonzero(is_odd[piece])
            if len(odd):  # few pieces hold no word, such as a dash, or several, as where a space is missing
                times = np.ones(len(piece), np.int32)
                times[odd] = held[piece[odd]]
                ends = np.append(np.int32(0), np.cumsum(times, dtype=np.int32))
                word, starts = np.repeat(word, times), ends[starts]
                for place in odd[times[odd] > 1].tolist():
                    word[ends[place] : ends[place + 1]] = inside[piece[place]]
            blocks.append(Block(turn * _BLOCK, word, starts))
        return cls(sums, list(number), blocks)

    @cached_property
    def openings(self) -> np.ndarray:
        """The numbers of the first three words of each caption, `(captions, 3)`; -1 where it has fewer."""
        found = np.full((len(self.hashes), 3), -1, np.int64)
        for block in self.blocks:
            mine = block.of(found)
            for place in range(3):
                has = np.flatnonzero(block.starts[:-1] + place < block.starts[1:])
                mine[has, place] = block.word[block.starts[has] + place]
        return found

    def attributes(self) -> tuple[list[np.ndarray], list[tuple[str, str]]]:
        """The attribute words as `find_attributes` finds them.

        Returns:
            For each block the number of the attribute that each word is, 0 for none, and of two words the second; and
            the kind and the text of each number.
        """
        plain = [word.replace("’", "'") for word in self.words]
        named = [("", ""), *((kind_of(word), text) for word, text in zip(plain, self.words, strict=True))]
        of_word = np.array([place if kind else 0 for place, (kind, _) in enumerate(named)][1:], np.int32)
        attributes = [of_word[block.word] for block in self.blocks]
        places = {word: place for place, word in enumerate(plain)}
        for (first, second), kind in TWO_WORDS.items():
            if first in places and second in places:
                for block, attribute in zip(self.blocks, attributes, strict=True):
                    pairs = np.flatnonzero(block.word[:-1] == places[first])
                    pairs = pairs[block.word[pairs + 1] == places[second]]
                    pairs = pairs[block.caption[pairs] == block.caption[pairs + 1]]
                    attribute[pairs], attribute[pairs + 1] = len(named), 0
                named.append((kind, f"{first} {second}"))
        return attributes, named


def _pieces(texts: pa.StringArray) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Texts cut after each space.

    Returns:
        For each block the numbers of its pieces and where its texts begin; and the different pieces in lower case.

    The pieces are not copied: they lie in the memory of the texts, one behind the other.
    """
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int32, len(texts) + 1, texts.offset * 4)
    letters = np.frombuffer(data or b"", np.uint8)
    chunks, starts = [], []
    for first in range(0, len(texts), _BLOCK):
        own = edges[first : first + _BLOCK + 1]
        begins = np.empty(own[-1] - own[0] + 1, bool)
        np.equal(letters[own[0] : own[-1]], ord(" "), out=begins[1:])
        begins[own - own[0]] = True
        cuts = (np.flatnonzero(begins) + own[0]).astype(np.int32)
        starts.append(np.searchsorted(cuts, own).astype(np.int32))
        has = len(cuts) > 1
        chunks.append(
            pa.StringArray.from_buffers(len(cuts) - 1, pa.py_buffer(cuts), data) if has else pa.array([], pa.string())
        )
    encoded = pa.chunked_array(chunks, pa.string()).dictionary_encode()
    pieces = encoded.chunk(0).dictionary.to_pylist() if chunks else []  # one dictionary for all chunks
    numbers = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return list(zip(numbers, starts, strict=True)), [text.lower() for text in pieces]
