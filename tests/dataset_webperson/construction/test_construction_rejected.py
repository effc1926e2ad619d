"""Whatever lies in a source is in the data or named with its reason, and one bad item never stops a build midway."""

import io
import json
import os
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from made_up_persons import GOOD, picture, stub_crop_shard
from made_up_webperson import add_member
from PIL import Image
from test_construction_crop import write_tar

from dataset_webperson import build
from dataset_webperson.construction.shards import read_rows
from dataset_webperson.construction.sources import (
    LEAST_PER_LIST,
    MOST_PER_LIST,
    find_shards,
    list_images,
    read_images,
    stray_files,
)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)


def run(root, capsys, **changes):
    """A build up to `dedup`: its exit code, what it wrote on stderr, its counts, and the rejected files by name."""
    stub = {"backend": "onnx", "model": "stub"}
    config = {"source": str(root / "source"), "work": str(root / "work"), "crop": {"detector": stub, "pose": stub}}
    (root / "config.yaml").write_text(yaml.safe_dump(config | changes))
    code = build.main([str(root / "config.yaml")])
    error = capsys.readouterr().err
    if code:
        return code, error, {}, {}
    counts = json.loads((root / "work" / "counts.json").read_text())
    rejected = {
        row["name"] or row["shard"]: row["reason"] for row in read_rows(str(root / "work" / "rejected.parquet"))
    }
    return code, error, counts, rejected


def test_every_plain_file_is_cropped_or_named_with_its_reason(tmp_path, capsys, monkeypatch):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    good = picture(GOOD)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 420 * 300)
    names = ["a.png", "b.gif", "c.avif", "d.HEIC", "e.jfif", "no ending", "f.jpg?w=200", "._a.png", "deep/g.png"]
    names += ["photo.v1.png", "photo.v2.png", "a.txt", "lone.txt", "deep/tars.tar", "h.png", "i.tar.gz", "j.png"]
    for name in names:
        (source / name).write_bytes(good)
    (source / "a.json").write_text('{"url": "https://a.org/a.png"}')
    (source / "h.png").write_bytes(b"no picture")
    (source / "j.json").write_text('{"url": 7}')
    (source / "large.png").write_bytes(picture(GOOD, size=(440, 300)))
    with open(os.fsencode(source) + b"/\xff.png", "wb") as file:
        file.write(good)
    code, _, counts, rejected = run(tmp_path, capsys)
    assert code == 0
    assert rejected == {
        "b.gif": "ending_gif", "c.avif": "ending_avif", "d.HEIC": "ending_heic", "e.jfif": "ending_jfif",
        "no ending": "no_ending", "f.jpg?w=200": "query_in_name", "._a.png": "hidden_file", "lone.txt": "ending_txt",
        "deep/tars.tar": "tar_in_subfolder", "i.tar.gz": "ending_gz", "\\xff.png": "name_not_utf8",
        "h.png": "image_unreadable", "j.png": "url_not_text", "large.png": "image_too_large",
    }  # fmt: skip
    taken = ["a.png", "deep/g.png", "photo.v1.png", "photo.v2.png"]
    assert counts["1_crop"]["rows_out"] == len(taken)
    of_source = {name: count for name, count in counts["0_source"].items() if not name.startswith("rows_")}
    of_crop = {name: counts["1_crop"].get(name, 0) for name in ("image_unreadable", "url_not_text", "image_too_large")}
    assert Counter(rejected.values()) == Counter(of_source) + Counter(of_crop)
    # Every file is in one of the two, but for what belongs to a picture.
    files = sum(len(names) for _, _, names in os.walk(source))
    assert files == len(taken) + len(rejected) + len(["a.json", "a.txt", "j.json"])


def messy_tars(root):
    """Six tars, of which one is whole, and files beside them."""
    root.mkdir(parents=True)
    good = picture(GOOD)
    write_tar(root / "0.tar", [("a.png", good), ("b.gif", good), ("b.txt", b""), ("photo.json", b'{"url": "https://a.org/"}'),
              ("photo.v1.png", good), ("photo.v2.png", good), ("photo.v3.png", good)])  # fmt: skip
    whole = open(write_tar(root / "cut.tar", [(f"{n}.png", good) for n in range(3)]), "rb").read()
    (root / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (root / "no_bytes.tar").write_bytes(b"")
    write_tar(root / "empty.tar", [])
    write_tar(root / "seven.tar", [("a.png", good), ("a.json", b'{"url": 7}'), ("b.png", good)])
    with tarfile.open(root / "latin.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name in ("caf\xe9.png", "c.png"):
            add_member(tar, name, good)
    (root / "beside.png").write_bytes(good)
    (root / "deep").mkdir()
    write_tar(root / "deep" / "more.tar", [("a.png", good)])


def test_bad_tars_are_found_at_the_start_and_left_out_only_when_asked(tmp_path, capsys):
    messy_tars(tmp_path / "source")
    code, error, _, _ = run(tmp_path, capsys)
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    assert code == 2 and "5 of its files cannot be used" in line and "set `on_bad_shard: skip`" in line
    for words in ("cut.tar  (tar_cut)", "empty.tar  (tar_empty)", "seven.tar a.png (url_not_text)", "(name_not_utf8)"):
        assert " ".join(words.split()) in line
    assert not (tmp_path / "work" / "1_crop").exists()

    code, _, counts, rejected = run(tmp_path, capsys, on_bad_shard="skip")
    assert code == 0 and counts["1_crop"]["rows_out"] == 4 + 1 + 1
    assert rejected == {
        "b.gif": "ending_gif", "cut.tar": "tar_cut", "no_bytes.tar": "tar_empty", "empty.tar": "tar_empty",
        "a.png": "url_not_text", "caf\\xe9.png": "name_not_utf8", "beside.png": "beside_tars",
        "deep/more.tar": "tar_in_subfolder",
    }  # fmt: skip
    assert counts["0_source"]["rows_out"] == 6
    urls = [row["url"] for row in read_rows(str(tmp_path / "work" / "1_crop" / "0.parquet"))]
    assert urls == [None] + 3 * ["https://a.org/"]

    # A tar that was downloaded again is looked at again.
    write_tar(tmp_path / "source" / "cut.tar", [(f"{number}.png", picture(GOOD, seed=number)) for number in range(3)])
    shards, _ = find_shards(str(tmp_path / "source"), "")
    scan = build.scan_source(str(tmp_path / "source"), shards, str(tmp_path / "work"), "skip", 1)
    assert "tar_cut" not in scan.counts and scan.counts["rows_out"] == 9


def test_a_cut_parquet_and_addresses_that_are_numbers_are_found_too(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    table = pa.Table.from_pylist([{"jpg": picture(GOOD), "key": "a", "url": 7}, {"jpg": picture(GOOD), "key": "b"}])
    for name in ("0", "1"):
        pq.write_table(table, tmp_path / "source" / f"{name}.parquet")
    data = (tmp_path / "source" / "1.parquet").read_bytes()
    (tmp_path / "source" / "1.parquet").write_bytes(data[: len(data) // 2])
    code, error, _, _ = run(tmp_path, capsys)
    assert code == 2 and "0.parquet a (url_not_text), 1.parquet (parquet_cut)" in error
    code, _, counts, rejected = run(tmp_path, capsys, on_bad_shard="skip")
    assert rejected == {"a": "url_not_text", "1.parquet": "parquet_cut"} and counts["1_crop"]["rows_out"] == 1


@pytest.mark.parametrize(("files", "lists"), [(1, 1), (32, 1), (33, 2), (1_000, 32), (6_000, 64)])
def test_lists_of_plain_files_are_small_and_enough_for_many_workers(tmp_path, monkeypatch, files, lists):
    names = [f"{number:05d}.jpg" for number in range(files)]
    monkeypatch.setattr(os, "walk", lambda root: [(root, [], names)])
    found = list_images(str(tmp_path), str(tmp_path / "lists"))
    sizes = [len(json.loads(open(path).read())["images"]) for path in found]
    assert len(found) == lists and sum(sizes) == files and max(sizes) <= MOST_PER_LIST
    assert min(sizes[:-1], default=LEAST_PER_LIST) >= LEAST_PER_LIST


def test_files_that_came_later_get_lists_of_their_own(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(picture(GOOD, seed=number))
    (first,) = list_images(str(tmp_path / "in"), str(tmp_path / "lists"))
    before = open(first).read()
    (tmp_path / "in" / "0a.png").write_bytes(picture(GOOD, seed=9))
    shards = list_images(str(tmp_path / "in"), str(tmp_path / "lists"))
    assert shards[0] == first and open(first).read() == before
    assert [image.source_id for image in read_images(shards[1])] == ["0a"]
    assert list_images(str(tmp_path / "in"), str(tmp_path / "lists")) == shards
    assert list(stray_files(str(tmp_path / "in"), shards)) == []


def test_a_key_with_many_pictures_needs_no_memory_for_them(tmp_path):
    data = io.BytesIO()
    Image.new("L", (1, 1)).save(data, "PNG")
    members = [(f"cam1.frame{number}.png", data.getvalue()) for number in range(100)]
    path = write_tar(tmp_path / "0.tar", [*members, ("cam1.txt", b"words")])
    images = list(read_images(path))
    assert [image.source_id for image in images] == [f"cam1.frame{number}" for number in range(100)]
    assert not any(image.problem for image in images)
