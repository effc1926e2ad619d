"""Tiny made-up copies of Market-1501 and MSMT17, in their own layouts."""

from pathlib import Path

from made_up_datasets import write_picture

QUERIES = ((3, 1), (3, 2), (5, 4))  # person and camera
GALLERY = ((3, 1), (3, 2), (3, 3), (5, 1), (5, 6), (7, 2), (7, 3))
DISTRACTORS, JUNK = 2, 3


def write_market(root: Path) -> Path:
    """Person 7 is in the gallery alone; two images of nobody, and three of junk."""
    for folder, pairs in (("query", QUERIES), ("bounding_box_test", GALLERY)):
        for number, (person, camera) in enumerate(pairs):
            seed = 100 * len(folder) + number
            write_picture(root / folder / f"{person:04d}_c{camera}s1_{seed:06d}_01.jpg", seed)
    for number in range(DISTRACTORS):
        write_picture(root / "bounding_box_test" / f"0000_c{number + 1}s1_000009_02.jpg", 500 + number)
    for number in range(JUNK):
        write_picture(root / "bounding_box_test" / f"-1_c{number + 1}s2_000009_02.jpg", 600 + number)
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"\0")
    return root


def write_msmt(root: Path) -> Path:
    """The persons of `write_market`, with ids from 0: a list each of queries and gallery."""
    for name, pairs in (("query", QUERIES), ("gallery", GALLERY)):
        lines = []
        for number, (person, camera) in enumerate(pairs):
            seed = 100 * len(name) + number
            path = f"{person - 3:04d}/{person - 3:04d}_{number:03d}_{camera:02d}_0303morning_{seed:04d}_0.jpg"
            write_picture(root / "test" / path, seed)
            lines.append(f"{path} {person - 3}\n")
        (root / f"list_{name}.txt").write_text("".join(lines))
    return root


WRITERS = {"market-1501": ("Market-1501-v15.09.15", write_market), "msmt17": ("MSMT17_V1", write_msmt)}


def write_copy(name: str, folder: Path) -> Path:
    """A clean copy in a folder of the data set's own name."""
    own, write = WRITERS[name]
    return write(folder / own)
