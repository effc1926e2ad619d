"""Rows whose images lie in another file come with them, in order, or the missing file is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_webperson.findings import DataError
from dataset_webperson.rows.joined_parquet import whole_batches, without_images
from dataset_webperson.rows.local_source import open_source

COUNT = 300
ROWS = [
    {
        "image": {"bytes": number.to_bytes(2, "big"), "path": None},
        "image_path": f"{number}.jpg",
        "caption1": f"A {number}.",
    }
    for number in range(COUNT)
]
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_path", pa.string()),
        ("caption1", pa.string()),
    ]
)


def write(root, kept):
    """All rows with their images, those of `kept` without, and from these again every other one."""
    paths = [str(root / folder / "train.parquet") for folder in ("1_all", "2_kept", "3_half")]
    for path in paths:
        (root / path).parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS, schema=SCHEMA), paths[0], row_group_size=70)
    for path, source, rows in ((paths[1], paths[0], kept), (paths[2], paths[1], kept[::2])):
        table = pa.Table.from_pylist([ROWS[number] for number in rows], schema=without_images(source, path))
        pq.write_table(table, path, row_group_size=40)
    return paths


def read(path, size, columns=None, groups=None):
    with pq.ParquetFile(path) as parquet:
        batches = list(whole_batches(path, parquet, size, columns, groups))
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("share, size", [(0.02, 7), (0.5, 64), (1.0, 100), (0.9, 1000)])
def test_every_row_has_its_own_image_whichever_are_left(tmp_path, share, size):
    kept = np.flatnonzero(np.random.default_rng(size).random(COUNT) < share).tolist()
    paths = write(tmp_path, kept)
    assert read(paths[0], size) == ROWS
    assert read(paths[1], size) == [ROWS[number] for number in kept]
    assert read(paths[2], size) == [ROWS[number] for number in kept[::2]]
    assert "image" not in pq.read_schema(paths[2]).names


def test_columns_and_groups_are_those_asked_for(tmp_path):
    paths = write(tmp_path, list(range(0, COUNT, 3)))
    wanted = [{name: ROWS[number][name] for name in ("image", "caption1")} for number in range(120, 240, 3)]
    assert read(paths[1], 16, ["image", "caption1"], [1]) == wanted
    (tmp_path / "1_all" / "train.parquet").unlink()
    assert read(paths[1], 16, ["caption1"])[0] == {"caption1": "A 0."}  # no image, no other file


def test_a_folder_of_such_files_is_a_source(tmp_path):
    write(tmp_path, list(range(0, COUNT, 3)))
    source = open_source(tmp_path / "2_kept")
    rows = list(source.rows(source.shards[0], 55))
    assert [(row.image_path, row.read(), row.captions) for row in rows] == [
        (ROWS[number]["image_path"], ROWS[number]["image"]["bytes"], [ROWS[number]["caption1"]])
        for number in range(165, COUNT, 3)
    ]


def test_images_that_are_gone_are_named(tmp_path):
    paths = write(tmp_path, [1, 5, 200])
    pq.write_table(pa.Table.from_pylist(ROWS[:5] + ROWS[6:], schema=SCHEMA), paths[0])
    with pytest.raises(DataError, match="1_all/train.parquet: lacks images of .*2_kept"):
        read(paths[1], 10)
    (tmp_path / "1_all" / "train.parquet").unlink()
    with pytest.raises(DataError, match="train.parquet: is gone, and .*2_kept/train.parquet has its images there"):
        read(paths[1], 10)
