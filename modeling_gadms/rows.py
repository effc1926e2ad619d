"""What a captioned row is: its image, its captions, who it shows, and a number that stands for it everywhere."""

import hashlib

import torch


def stable_hash(*parts) -> int:
    """A number in [0, 2**63) that depends on the printed parts alone: the same in every process, run and machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def read_row(dataset, index: int) -> dict:
    """One row with its image decoded.

    Raises:
        ValueError: the image is missing or broken; names the row and the image, and the cure.
    """
    try:
        row = dataset[index]
        if row["image"] is None:
            raise ValueError("there is none")
        return row
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on missing and broken files
        path = dataset.select_columns("image_path")[index]["image_path"]
        raise ValueError(
            f"row {index}, image {path}: cannot be read ({error}). Replace the file, or leave the row out with "
            "`dataset.select`; training can be resumed from its last checkpoint"
        ) from error


def caption_columns(row: dict) -> list[str]:
    """Names of the caption columns, `caption1`, `caption2`, ..., in order.

    Raises:
        ValueError: there is none.
    """
    columns = sorted((name for name in row if name[:7] == "caption" and name[7:].isdigit()), key=lambda n: int(n[7:]))
    if not columns:
        raise ValueError(
            f"no column caption1, caption2, ... among {sorted(row)}: rename the one that holds the captions"
        )
    return columns


def pick_column(row: dict) -> str:
    """The caption column that a row shows in its epoch: all in turn, from a start that depends on the image."""
    columns = caption_columns(row)
    return columns[(stable_hash(row["image_path"]) + row["epoch"]) % len(columns)]


def captions_of(row: dict) -> list[str]:
    """The captions of a row, in order: its `captions`, or its `caption1`, `caption2`, ...

    Raises:
        ValueError: it has neither.
    """
    if "captions" in row:
        return [row["captions"]] if isinstance(row["captions"], str) else list(row["captions"])
    return [row[name] for name in caption_columns(row)]


def all_captions(dataset) -> tuple[list[str], torch.Tensor]:
    """Every caption of a data set, and the row of the image each was written for, int64 `(M,)`."""
    names = [name for name in dataset.column_names if name.startswith("caption")]
    names = [name for name in names if name == "captions" or name[7:].isdigit()]
    # without the images, which would be decoded
    rows = dataset.select_columns(names) if names else [dict.fromkeys(dataset.column_names)]
    captions = [captions_of(row) for row in rows]
    index = [row for row, own in enumerate(captions) for _ in own]
    if not index:
        raise ValueError("the data set has no captions: every list of captions is empty")
    return [caption for own in captions for caption in own], torch.tensor(index)


def person_ids(dataset) -> list[int]:
    """Who is seen in each image; without a column `person_id` each image is its own person."""
    if "person_id" in dataset.column_names:
        return dataset["person_id"][:]
    return [stable_hash(path) for path in dataset["image_path"][:]]
