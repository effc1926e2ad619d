"""How many bytes of a release's next revision are new to storage that cuts files into chunks by their content.

    python examples/benchmark_revision.py --rows 10000

Rows as a construction makes them are written as a release has them, and written again after one image was taken down
and 5 % of the captions changed. Images are random bytes, captions random words, which compress less than sentences do.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.release_shards import Layout, hashed, release_features, write_shard

LEAST, MEAN, MOST = 8 << 10, 64 << 10, 128 << 10  # bytes of a chunk, as the Hub's storage has them
_GEAR = np.random.default_rng(0).integers(0, 1 << 16, 256, dtype=np.uint16)
_TEXT, _NUMBER = Value("string"), Value("float32")
_WORDS = List({"start": Value("int32"), "end": Value("int32"), "kind": _TEXT, "score": _NUMBER})
FEATURES = release_features(
    Features(
        {name: Image() if name == "image" else _TEXT for name in ("image", "image_path", "caption1", "caption2")}
        | {name: _TEXT for name in ("url", "source_id", "source_sha256", "phash", "template_id")}
        | {"box": List(_NUMBER), "box_score": _NUMBER, "keypoints": List(List(_NUMBER))}
        | {f"caption{number}_{part}": _NUMBER for number in (1, 2) for part in ("score", "word_score")}
        | {f"caption{number}_words": _WORDS for number in (1, 2)}
    )
)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python examples/benchmark_revision.py", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the release (default: %(default)s)")
    parser.add_argument("--image_bytes", type=int, default=17_000, help="mean of an image (default: %(default)s)")
    parser.add_argument("--row_group_rows", type=int, nargs="+", default=[100, 1000], help="layouts to compare")
    args = parser.parse_args(arguments)
    print("| rows per group | change | joined files | and captions | new of all bytes |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for group_rows in args.row_group_rows:
            layout = Layout(max(10_000, group_rows), group_rows)
            for change, (sizes, new) in revisions(args.rows, args.image_bytes, layout, folder).items():
                joined, captions = (f"{size / 1e6:,.1f} MB" for size in sizes)
                print(f"| {group_rows:,} | {change} | {joined} | {captions} | {new / sum(sizes):.2%} |", flush=True)


def revisions(count: int, image_bytes: int, layout: Layout, folder: str) -> dict[str, tuple[tuple[int, int], int]]:
    """For each kind of change: bytes of the joined files and of the captions, and how many of both are new."""
    known = {digest for path in write(range(count), set(), image_bytes, layout, folder) for digest, _ in read(path)}
    gone = count // 3
    changed = set(np.random.default_rng(1).choice(count, count // 20, replace=False).tolist())
    kept = [number for number in range(count) if number != gone]
    found = {}
    for name, numbers, other in (
        ("1 image gone", kept, set()),
        ("5 % of captions", range(count), changed),
        ("both", kept, changed),
    ):
        paths = write(numbers, other, image_bytes, layout, folder)
        fresh = {digest: size for path in paths for digest, size in read(path) if digest not in known}
        sizes = [sum(map(os.path.getsize, paths[start::2])) for start in (0, 1)]
        found[name] = ((sizes[0], sizes[1]), sum(fresh.values()))
    return found


def write(numbers: Iterable[int], changed: set[int], image_bytes: int, layout: Layout, folder: str) -> list[str]:
    """Write the rows of these numbers; the files, of joined rows and of captions in turn."""
    numbers, paths = list(numbers), []
    while numbers:
        taken = next((n for n, at in enumerate(numbers, 1) if layout.ends_shard(_name(at), n)), len(numbers))
        stem = os.path.join(folder, f"{len(paths):06d}")
        rows = (made_up_row(number, number in changed, image_bytes) for number in numbers[:taken])
        write_shard(stem, hashed(rows), FEATURES, layout)
        paths += [f"{stem}.parquet", f"{stem}.captions.parquet"]
        numbers = numbers[taken:]
    return paths


def _name(number: int) -> str:
    return f"{number // 1000:05d}_{number % 1000:06d}_0.jpg"


def made_up_row(number: int, has_new_captions: bool, image_bytes: int) -> dict[str, Any]:
    """A row that follows from its number, but for the captions and what was found in them."""
    random, words = np.random.default_rng([0, number]), np.random.default_rng([1, number, has_new_captions])
    data = random.bytes(int(random.integers(image_bytes * 3 // 4, image_bytes * 5 // 4)))
    digest = hashlib.sha256(data).hexdigest()
    row: dict[str, Any] = {"image": {"bytes": data, "path": _name(number)}, "image_path": _name(number)}
    row |= {"url": f"https://example.org/{digest[:12]}.jpg", "source_id": str(number), "source_sha256": digest[::-1]}
    row |= {"phash": digest[:16], "template_id": f"t{words.integers(65):03d}", "box_score": random.random()}
    row |= {"box": random.random(4).tolist(), "keypoints": random.random((17, 3)).tolist()}
    for caption in ("caption1", "caption2"):
        row[caption] = " ".join(VOCABULARY[place] for place in words.integers(0, len(VOCABULARY), 30))
        row[f"{caption}_score"], row[f"{caption}_word_score"] = words.random(), words.integers(7) / 6
        starts = np.sort(words.integers(0, 200, 6)).tolist()
        row[f"{caption}_words"] = [
            {"start": start, "end": start + 6, "kind": "colour", "score": words.random()} for start in starts
        ]
    return row


VOCABULARY = ["".join(map(chr, letters)) for letters in np.random.default_rng(2).integers(97, 123, (2000, 6))]


def read(path: str) -> list[tuple[bytes, int]]:
    """SHA-256 and size of each chunk of a file."""
    with open(path, "rb") as file:
        data = file.read()
    ends = chunk_ends(data)
    starts = [0, *ends[:-1]]
    return [(hashlib.sha256(data[a:b]).digest(), b - a) for a, b in zip(starts, ends, strict=True)]


def chunk_ends(data: bytes) -> list[int]:
    """Where the chunks of a file end.

    A rolling hash of the last 16 bytes, `hash = (hash << 1) + gear[byte]` in 16 bits, ends a chunk where it is 0, one
    byte of 65,536, after at least `LEAST` and at most `MOST` bytes.
    """
    hashes = _GEAR[np.frombuffer(data, np.uint8)]
    for width in (1, 2, 4, 8):  # the hash of 2 * width bytes from two of width
        wider = hashes.copy()
        wider[width:] += hashes[:-width] << np.uint16(width)
        hashes = wider
    marks, ends = np.flatnonzero(hashes == 0) + 1, []
    while (start := ends[-1] if ends else 0) < len(data):
        place = int(np.searchsorted(marks, start + LEAST))
        mark = int(marks[place]) if place < len(marks) else len(data)
        ends.append(min(mark, start + MOST, len(data)))
    return ends


if __name__ == "__main__":
    sys.exit(main())
