"""How many different texts there are among many, in bounded memory, from parts that can be counted apart."""

import heapq
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_KEPT = 1_024


class Distinct:
    """The number of different texts: exact up to 1,024, then an estimate with a standard error of 3 %.

    Texts are spread evenly over the numbers below 2 ** 64 by a hash, and the least 1,024 of these are kept: the closer
    together they lie, the more there are. Two such sets make one for all the texts of both.
    """

    def __init__(self, least: Iterable[int] = ()):
        self.least = sorted(least)

    @classmethod
    def of(cls, hashes: np.ndarray) -> "Distinct":
        """The texts of these hashes (`caption_words.text_hash`), uint64, in which one may stand many times."""
        found = pc.unique(pa.array(hashes)).to_numpy()
        return cls((np.partition(found, _KEPT)[:_KEPT] if len(found) > _KEPT else found).tolist())

    def __or__(self, other: "Distinct") -> "Distinct":
        return Distinct(heapq.nsmallest(_KEPT, {*self.least, *other.least}))

    def __len__(self) -> int:
        count = len(self.least)
        return count if count < _KEPT else round((count - 1) * 2**64 / self.least[-1])

    @property
    def is_exact(self) -> bool:
        return len(self.least) < _KEPT
