"""Captions that stand on too many images: a captioner that has nothing to say says the same to every picture.

`find_repeated` counts the captions of all shards once, by eight bytes of a hash each, on disk and in parts; the stage
`quality` then marks those that it found. Case, spaces and punctuation make no difference.
"""

import hashlib
import os
import re
import shutil

import numpy as np

from ...files import replacing, write_json, written_once
from ...findings import DataError
from ..shards import read_rows, run_missing

_WORD = re.compile(r"\w+")
_IN_MEMORY = 4_000_000  # hashes that are sorted at a time
COLUMNS = ["caption1", "caption2"]


def caption_hash(caption: str) -> int:
    """A hash of a caption's words, below 2**64."""
    words = " ".join(_WORD.findall(caption.lower()))
    return int.from_bytes(hashlib.blake2b(words.encode(errors="replace"), digest_size=8).digest(), "little")


def find_repeated(shards: list[str], plan: str, limit: int, num_workers: int = 1) -> int:
    """Write the hashes of captions that stand on more than `limit` images to the folder `plan`.

    An image whose captions are equal counts once. Nothing is counted again for the same shards.

    Returns:
        The number of such captions.
    """
    state = {"shards": [os.path.basename(shard) for shard in shards], "limit": limit}
    done, path = os.path.join(plan, "done.json"), os.path.join(plan, "repeated.npy")
    if os.path.exists(done) and written_once(done, state) == state:
        return len(load_repeated(plan))
    work = os.path.join(plan, "counted")
    facts = [os.stat(shard) for shard in shards]
    begun = state | {"files": [[fact.st_size, fact.st_mtime_ns] for fact in facts]}
    if os.path.isdir(work) and written_once(os.path.join(work, "state.json"), begun) != begun:
        shutil.rmtree(work)  # of shards that have changed since
    written_once(os.path.join(work, "state.json"), begun)
    files = [os.path.join(work, f"{os.path.basename(shard)}.hashes") for shard in shards]
    run_missing(write_hashes, zip(shards, files, strict=True), None, num_workers, "quality: captions", short=True)
    found = _over(files, limit)
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, found)
    write_json(done, state)  # last: it says that the plan is complete
    shutil.rmtree(work)
    return len(found)


def write_hashes(source: str, target: str, options: None) -> None:
    """Write the hashes of a shard's captions, each once for an image."""
    rows = ({caption_hash(row[name]) for name in COLUMNS if row[name]} for row in read_rows(source, COLUMNS))
    with replacing(target) as part:
        np.array([number for row in rows for number in sorted(row)], np.uint64).tofile(part)


def _over(files: list[str], limit: int) -> np.ndarray:
    """The hashes that are there more than `limit` times, sorted; a share of them in memory at a time."""
    parts = np.uint64(1 + sum(map(os.path.getsize, files)) // 8 // _IN_MEMORY)
    found = [np.empty(0, np.uint64)]
    for part in range(int(parts)):
        chunks = (np.fromfile(path, np.uint64) for path in files)
        values, counts = np.unique(
            np.concatenate([found[0], *(c[c % parts == part] for c in chunks)]), return_counts=True
        )
        found.append(values[counts > limit])
    return np.sort(np.concatenate(found))


def load_repeated(plan: str) -> frozenset[int]:
    """The hashes that `find_repeated` wrote. Raises `DataError` if it was not run."""
    path = os.path.join(plan, "repeated.npy")
    if not os.path.exists(path):
        raise DataError(f"{path}: no such plan; run `find_repeated` on all caption shards first")
    return frozenset(np.load(path, allow_pickle=False).tolist())
