"""Chunks by content against a slow twin, and what a revision of a release changes."""

import sys
from pathlib import Path

import numpy as np
import pytest
from places import REPO

sys.path.insert(0, str(REPO / "examples"))
from benchmark_revision import _GEAR, LEAST, MEAN, MOST, chunk_ends, main, read, revisions, write

from dataset_webperson.release_shards import Layout


def ends_one_byte_at_a_time(data):
    ends, start, rolling = [], 0, 0
    for place, byte in enumerate(data, 1):
        rolling = (rolling * 2 + int(_GEAR[byte])) % 65_536
        size = place - start
        if place == len(data) or size == MOST or (size >= LEAST and rolling == 0):
            ends.append(place)
            start = place
    return ends


@pytest.mark.parametrize("size", [0, 1, LEAST, 400_000])
def test_chunks_end_where_the_rolling_hash_is_zero(size):
    data = np.random.default_rng(size).bytes(size)
    assert chunk_ends(data) == ends_one_byte_at_a_time(data)
    assert chunk_ends(b"\0" * size) == ends_one_byte_at_a_time(b"\0" * size)


def test_chunks_have_the_size_of_the_hub_s_and_come_together_again_after_an_insertion(tmp_path):
    data = np.random.default_rng(0).bytes(4_000_000)
    assert 0.7 * MEAN < len(data) / len(chunk_ends(data)) < 1.3 * MEAN
    for name, content in (("a", data), ("b", data[:1_000_000] + b"something" + data[1_000_000:])):
        (tmp_path / name).write_bytes(content)
    known = {digest for digest, _ in read(str(tmp_path / "a"))}
    assert sum(size for digest, size in read(str(tmp_path / "b")) if digest not in known) <= 2 * MOST


def test_an_image_that_goes_changes_its_own_files_alone(tmp_path):
    layout = Layout(80, 20)
    before = [Path(path).read_bytes() for path in write(range(300), set(), 200, layout, str(tmp_path))]
    numbers = [number for number in range(300) if number != 150]
    after = [Path(path).read_bytes() for path in write(numbers, set(), 200, layout, str(tmp_path))]
    assert len(before) == len(after) > 4
    assert [place for place in range(len(after)) if before[place] != after[place]] == [2, 3]  # the second's two


def test_changed_captions_cost_less_than_three_percent_and_an_image_that_goes_the_text_of_its_group(tmp_path, capsys):
    (sizes, gone), (_, captions), (_, both) = revisions(200, 60_000, Layout(200, 200), str(tmp_path)).values()
    assert 0 < captions < 0.03 * sum(sizes) and captions < both
    assert 0 < gone < 6 * MOST
    main(["--rows", "40", "--image_bytes", "3000", "--row_group_rows", "5"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["1 image gone", "5 % of captions", "both"]
    assert float(rows[-1][-1].rstrip("% |")) > 10
