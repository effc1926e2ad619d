"""Captions that stand on too many images: a captioner that has nothing to say says the same to every picture.

`find_repeated` counts the captions of all shards once, by eight bytes of a hash each, on disk and in parts; the stage
`quality` then marks those that it found. Case, spaces and punctuation make no difference.
"""

import hashlib
import os
import re

import numpy as np

from ...files import replacing, write_json, written_once
from ...findings import DataError
from ..shards import read_rows

_WORD = re.compile(r"\w+")
_IN_MEMORY = 4_000_000  # hashes that are sorted at a time
_CHUNK = 1 << 20
COLUMNS = ["caption1", "caption2"]


def caption_hash(caption: str) -> int:
    """A hash of a caption's words, below 2**64."""
    words = " ".join(_WORD.findall(caption.lower()))
    return int.from_bytes(hashlib.blake2b(words.encode(errors="replace"), digest_size=8).digest(), "little")


def find_repeated(shards: list[str], plan: str, limit: int) -> int:
    """Write the hashes of captions that stand on more than `limit` images to the folder `plan`.

    An image whose captions are equal counts once. Nothing is counted again for the same shards.

    Returns:
        The number of such captions.
    """
    state = {"shards": [os.path.basename(shard) for shard in shards], "limit": limit}
    done, path = os.path.join(plan, "done.json"), os.path.join(plan, "repeated.npy")
    if os.path.exists(done) and written_once(done, state) == state:
        return len(load_repeated(plan))
    os.makedirs(plan, exist_ok=True)
    work = os.path.join(plan, "hashes")
    count = 0
    with open(work, "wb") as file:
        for shard in shards:
            rows = ({caption_hash(row[name]) for name in COLUMNS if row[name]} for row in read_rows(shard, COLUMNS))
            hashes = np.array([number for row in rows for number in sorted(row)], np.uint64)
            hashes.tofile(file)
            count += len(hashes)
    found = _over(np.memmap(work, np.uint64, "r"), limit) if count else np.empty(0, np.uint64)
    os.remove(work)
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, found)
    write_json(done, state)  # last: it says that the plan is complete
    return len(found)


def _over(hashes: np.ndarray, limit: int) -> np.ndarray:
    """The hashes that are there more than `limit` times, sorted; a share of them in memory at a time."""
    parts = np.uint64(1 + len(hashes) // _IN_MEMORY)
    found = []
    for part in range(int(parts)):
        chunks = (hashes[start : start + _CHUNK] for start in range(0, len(hashes), _CHUNK))
        values, counts = np.unique(np.concatenate([c[c % parts == part] for c in chunks]), return_counts=True)
        found.append(values[counts > limit])
    return np.sort(np.concatenate(found))


def load_repeated(plan: str) -> frozenset[int]:
    """The hashes that `find_repeated` wrote. Raises `DataError` if it was not run."""
    path = os.path.join(plan, "repeated.npy")
    if not os.path.exists(path):
        raise DataError(f"{path}: no such plan; run `find_repeated` on all caption shards first")
    return frozenset(np.load(path, allow_pickle=False).tolist())
