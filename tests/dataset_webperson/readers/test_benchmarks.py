"""Every benchmark in every layout becomes one schema, and a bad copy is refused with its defects named."""

import json
import os
import re
import warnings
import zipfile

import pytest
from datasets import Image as ImageFeature
from datasets import load_from_disk
from made_up_datasets import (
    BENCHMARK_WRITERS,
    Copy,
    people,
    set_path,
    write_aptm,
    write_copy,
    write_cuhk,
    write_icfg,
    write_iiitd,
    write_json,
    write_picture,
    write_rstp,
    write_ufine,
    write_ufine3c,
)

from dataset_webperson.findings import DataError, Findings
from dataset_webperson.readers.benchmark_copy import Benchmark, Counts, find_jsons, read_copy
from dataset_webperson.readers.benchmarks import BENCHMARKS, CUHKPEDES, ICFGPEDES, RSTPReid, load_benchmark
from dataset_webperson.readers.json_stream import JsonError, JsonNaNError, JsonShapeError, iter_dict, iter_list
from dataset_webperson.safe_paths import SafeRoot, UnsafePathError


class TinyCUHK(CUHKPEDES):
    """The made-up copy's own counts as the official ones: with it every check is in force."""

    official = {"train": Counts(5, 10, 20), "validation": Counts(2, 4, 8), "test": Counts(2, 4, 8)}


class TinyICFG(ICFGPEDES):
    official = {"train": Counts(5, 10, 10), "test": Counts(2, 4, 4)}


def load(name, root, **options):
    """Load a made-up copy; its counts are never the official ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_benchmark(name, root, on_count_mismatch="warn", **options)


def style_names():
    return [(style, name) for style, (name, _) in BENCHMARK_WRITERS.items()]


@pytest.mark.parametrize(("style", "name"), style_names())
def test_every_layout_gives_the_same_schema(tmp_path, style, name):
    data = load(name, write_copy(style, tmp_path))
    for split, table in data.items():
        assert isinstance(table.features["image"], ImageFeature)
        types = {column: feature.dtype for column, feature in table.features.items() if hasattr(feature, "dtype")}
        for column in ("person_id", "source_person_id", "image_id"):
            assert types[column] == "int64"
        for row in table:
            assert row["split"] == split
            assert row["image"].size == (48, 96)
            assert row["captions"] and all(isinstance(text, str) for text in row["captions"])
            assert not os.path.isabs(row["image_path"])
    first, *others = (set(table["person_id"]) for table in data.values())
    assert first == set(range(len(first)))
    assert all(first.isdisjoint(ids) for ids in others)
    image_ids = sorted(i for table in data.values() for i in table["image_id"])
    assert image_ids == list(range(len(image_ids)))


def test_rows_agree_with_the_json_read_by_hand(tmp_path):
    root = write_cuhk(tmp_path)
    data = load("cuhk-pedes", root)
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        entries = [entry for entry in json.loads((root / "reid_raw.json").read_text()) if entry["split"] == split]
        assert data[name]["captions"][:] == [entry["captions"] for entry in entries]
        assert data[name]["source_person_id"][:] == [entry["id"] for entry in entries]
        assert data[name]["image_path"][:] == [f"imgs/{entry['file_path']}" for entry in entries]
        assert data[name]["processed_tokens"][:] == [entry["processed_tokens"] for entry in entries]


def test_a_layout_with_one_caption_a_row_becomes_one_row_an_image(tmp_path):
    root = write_aptm(tmp_path)
    rows = json.loads((root / "icfg_train.json").read_text())
    data = load("icfg-pedes", root)
    by_image: dict[str, list[str]] = {}
    for row in rows:
        by_image.setdefault(f"imgs/{row['image']}", []).append(row["caption"])
    assert dict(zip(data["train"]["image_path"], data["train"]["captions"], strict=True)) == by_image
    assert all(len(captions) == 2 for captions in by_image.values())


@pytest.mark.parametrize("name", ["CUHK-PEDES", "cuhk_pedes", "cuhkpedes"])
def test_the_name_may_be_written_in_any_usual_way(tmp_path, name):
    assert len(load(name, write_cuhk(tmp_path))["train"]) == 10


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="cuhk-pedes, icfg-pedes, rstpreid, ufine6926, ufine3c, iiitd-20k"):
        load_benchmark("market", tmp_path)


def test_the_folder_above_works_as_well_as_the_folder(tmp_path):
    write_copy("rstp", tmp_path)
    assert load("rstpreid", tmp_path)["test"][:] == load("rstpreid", tmp_path / "RSTPReid")["test"][:]


def test_jsons_and_images_may_lie_apart(tmp_path):
    root = write_aptm(tmp_path / "images" / "ICFG-PEDES")
    annotations = tmp_path / "data" / "finetune"
    annotations.mkdir(parents=True)
    for name in ("icfg_train.json", "icfg_test.json"):
        (root / name).rename(annotations / name)
    write_json(annotations / "cuhk_train.json", [])  # of another benchmark, in the same folder: left alone
    data = load("icfg-pedes", root, annotations=annotations)
    assert {split: len(table) for split, table in data.items()} == {"train": 10, "test": 4}
    one = load("icfg-pedes", tmp_path, annotations=annotations / "icfg_test.json", image_root=root)
    assert list(one) == ["test"]


def test_official_counts_load_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_benchmark(TinyCUHK, write_cuhk(tmp_path))
    assert {split: len(table) for split, table in data.items()} == {"train": 10, "validation": 4, "test": 4}


def test_a_new_benchmark_is_one_small_class(tmp_path):
    class Parade(Benchmark):
        name = "Parade"
        folder = "Parade"
        json_names = ("parade.json",)
        image_folders = ("frames",)
        prefixes = ("parade",)
        first_id = 7
        home = "https://example.org/parade"
        official = {"train": Counts(1, 1, 1)}

    write_picture(tmp_path / "Parade" / "frames" / "a.jpg", seed=0)
    row = {"file_path": "a.jpg", "captions": ["A drummer."], "id": 7, "split": "train", "camera": 3}
    write_json(tmp_path / "Parade" / "parade.json", [row])
    data = load_benchmark(Parade, tmp_path)
    assert data["train"][0]["camera"] == 3
    assert data["train"][0]["person_id"] == 0


def test_wrong_counts_are_an_error_by_default_and_a_warning_on_request(tmp_path):
    root = write_cuhk(tmp_path)
    with pytest.raises(DataError, match=r"train has 5 ids, 10 images, 20 captions; official: 11,003 ids"):
        load_benchmark("cuhk-pedes", root)
    with pytest.warns(UserWarning, match="counts differ"):
        load_benchmark("cuhk-pedes", root, on_count_mismatch="warn")


def test_totals_are_checked_where_only_they_are_known(tmp_path):
    with pytest.raises(DataError, match=r"all splits together have 7 ids, 14 images, 28 captions; official: 6,926"):
        load_benchmark("ufine6926", write_ufine(tmp_path))


@pytest.mark.parametrize("form", ["CUHK", "ICFG", "RSTP"])
def test_an_image_of_iiitd_is_one_row_in_each_of_its_forms(tmp_path, form):
    """Without a warning, though one form has a row for each caption."""
    root = write_iiitd(tmp_path, form)
    findings = Findings()
    copy = read_copy(BENCHMARKS["iiitd-20k"], str(root), findings)
    assert copy.counts() == {
        "train": Counts(5, 5, 10),
        "validation": Counts(2, 2, 4),
        "test": Counts(2, 2, 4),
    }
    assert {finding.code for finding in findings} == {"counts-differ"}


def test_the_file_that_iiitd_is_handed_out_with_is_not_the_json(tmp_path):
    root = write_iiitd(tmp_path)
    (root / "IIITD-20K-RSTP-FORMAT.json").unlink()
    write_json(root / "Filtered.json", {"0": {"Image ID": "00000", "Description 1": "A man.", "Description 2": "He."}})
    with pytest.raises(DataError, match=r"Filtered\.json lies there, of which it is made: run format_CUHK\.py"):
        load("iiitd-20k", root)


def test_all_rows_of_ufine3c_are_of_test_and_keep_their_source(tmp_path):
    data = load("ufine3c", write_ufine3c(tmp_path))
    assert list(data) == ["test"] and len(data["test"]) == 8
    assert data["test"]["source"][:2] == ["UFine6926", "CUHK-PEDES"]
    assert [len(captions) for captions in data["test"]["captions"][:3]] == [2, 3, 4]


def test_the_rstpreid_json_from_before_2022_10_is_named(tmp_path):
    sizes = {"train": 3901, "val": 100, "test": 100}
    ids = iter(range(5000))
    rows = [
        {"id": (person := next(ids)), "img_path": f"{person:04d}_c1.jpg", "captions": ["a", "b"], "split": split}
        for split, size in sizes.items()
        for _ in range(size)
    ]
    write_json(tmp_path / "data_captions.json", rows)
    findings = Findings()
    read_copy(RSTPReid, str(tmp_path), findings)
    assert "this is the RSTPReid json from before 2022-10" in findings.get("old-copy").describe()
    assert findings.get("counts-differ") is None
    with pytest.raises(DataError, match="before 2022-10"):
        load_benchmark("rstpreid", tmp_path)


def test_missing_images_are_told_by_the_share_of_their_folder(tmp_path):
    root = write_cuhk(tmp_path)
    entries = json.loads((root / "reid_raw.json").read_text())
    market = [entry["file_path"] for entry in entries if entry["file_path"].startswith("Market/")]
    (root / "imgs" / market[0]).unlink()
    with pytest.raises(DataError, match=rf"50 % of the images of `Market/` are missing \(1 of {len(market)}\)"):
        load("cuhk-pedes", root)


def test_missing_and_empty_images_are_left_out_on_request(tmp_path):
    root = write_cuhk(tmp_path)
    copy = Copy(root)
    gone, emptied = copy.image(0), copy.image(3)
    gone.unlink()
    emptied.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        load("cuhk-pedes", root)
    data = load("cuhk-pedes", root, on_missing_images="skip")
    paths = {path for table in data.values() for path in table["image_path"]}
    assert len(paths) == 16
    assert str(gone.relative_to(root)) not in paths and str(emptied.relative_to(root)) not in paths
    train = set(data["train"]["person_id"])
    assert train == set(range(len(train)))


def test_person_ids_follow_the_order_of_the_source_ids(tmp_path):
    data = load("cuhk-pedes", write_cuhk(tmp_path))
    for table in data.values():
        pairs = sorted(set(zip(table["source_person_id"], table["person_id"], strict=True)))
        assert [new for _, new in pairs] == list(range(pairs[0][1], pairs[0][1] + len(pairs)))


@pytest.mark.filterwarnings("ignore:.*counts differ")
def test_ids_written_as_strings_become_integers_with_a_warning(tmp_path):
    root = write_cuhk(tmp_path)
    before = load("cuhk-pedes", root)

    def as_text(rows):
        for row in rows:
            row["id"] = f"{row['id']:05d}"

    Copy(root).edit(as_text)
    with pytest.warns(UserWarning, match="person ids written as strings"):
        after = load_benchmark("cuhk-pedes", root, on_count_mismatch="warn")
    for split in before:
        assert after[split]["source_person_id"][:] == before[split]["source_person_id"][:]


@pytest.mark.filterwarnings("ignore:.*counts differ")
def test_two_rows_for_one_image_become_one_with_all_captions_once(tmp_path):
    root = write_cuhk(tmp_path)

    def repeat(rows):
        rows.insert(1, {**rows[0], "captions": [rows[0]["captions"][1], "One more."]})

    Copy(root).edit(repeat)
    with pytest.warns(UserWarning, match="several rows for one image"):
        data = load_benchmark("cuhk-pedes", root, on_count_mismatch="warn")
    assert len(data["train"]) == 10
    assert len(data["train"][0]["captions"]) == 3
    assert data["train"][0]["captions"][-1] == "One more."


def test_columns_of_the_json_are_kept_whatever_they_hold(tmp_path):
    root = write_cuhk(tmp_path)

    def add(rows):
        for number, row in enumerate(rows):
            row["camera"] = number
            row["image_id"] = f"source {number}"
            row["mixed"] = number if number % 2 else {"a": [number]}
        del rows[3]["camera"]

    Copy(root).edit(add)
    data = load("cuhk-pedes", root)
    assert data["train"]["camera"][:4] == [0, 1, 2, None]
    assert data["train"]["source_image_id"][2] == "source 2"
    assert data["train"]["image_id"][2] == 2
    assert [json.loads(value) for value in data["train"]["mixed"][:3]] == [{"a": [0]}, 1, {"a": [2]}]


def test_map_filter_shard_and_saving_work(tmp_path):
    data = load("rstpreid", write_rstp(tmp_path / "data"))
    longer = data.map(lambda row: {"words": len(row["captions"][0].split())})
    assert longer["train"][0]["words"] > 3
    assert len(data["train"].filter(lambda row: row["person_id"] == 0)) == 2
    assert len(data["train"].shard(5, 0)) == 2
    data.save_to_disk(tmp_path / "saved")
    assert load_from_disk(tmp_path / "saved")["test"][0]["image"].size == (48, 96)


def test_the_same_copy_has_the_same_fingerprint_so_that_maps_are_cached(tmp_path):
    root = write_rstp(tmp_path)
    assert load("rstpreid", root)["train"]._fingerprint == load("rstpreid", root)["train"]._fingerprint


def test_the_official_splits_are_what_is_loaded_by_default(tmp_path):
    assert list(load_benchmark(TinyICFG, write_icfg(tmp_path))) == ["train", "test"]


def test_a_validation_split_is_carved_by_person_and_says_so_in_its_name(tmp_path):
    root = write_icfg(tmp_path)
    whole = load_benchmark(TinyICFG, root)
    data = load_benchmark(TinyICFG, root, validation_persons=2, seed=3)
    assert list(data) == ["train_minus_validation", "validation_from_train", "test"]
    kept = set(data["train_minus_validation"]["source_person_id"])
    held_out = set(data["validation_from_train"]["source_person_id"])
    assert len(held_out) == 2 and kept.isdisjoint(held_out)
    assert kept | held_out == set(whole["train"]["source_person_id"])
    assert set(data["train_minus_validation"]["person_id"]) == {0, 1, 2}
    assert data["test"]["captions"][:] == whole["test"]["captions"][:]
    again = load_benchmark(TinyICFG, root, validation_persons=2, seed=3)
    assert again["validation_from_train"]["image_path"][:] == data["validation_from_train"]["image_path"][:]
    drawn = {
        tuple(load_benchmark(TinyICFG, root, validation_persons=2, seed=s)["validation_from_train"]["image_path"])
        for s in range(6)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("count", [0, 5, 6])
def test_a_carved_validation_leaves_persons_on_both_sides(tmp_path, count):
    with pytest.raises(ValueError, match="train has 5 persons"):
        load_benchmark(TinyICFG, write_icfg(tmp_path), validation_persons=count)


def test_an_official_validation_split_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="validation split of its own"):
        load_benchmark(TinyCUHK, write_cuhk(tmp_path), validation_persons=1)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_missing_json_is_named_with_all_names_tried(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_benchmark(name, tmp_path)
    for tried in BENCHMARKS[name].json_names:
        assert tried in str(caught.value)
    assert "Cure" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_benchmark("cuhk-pedes", tmp_path / "nowhere")


@pytest.mark.parametrize("option", ["on_count_mismatch", "on_missing_images"])
def test_a_mistyped_option_lists_the_choices(tmp_path, option):
    with pytest.raises(ValueError, match="choose one of error"):
        load_benchmark("cuhk-pedes", tmp_path, **{option: "ignore"})


def test_all_defects_of_a_copy_come_in_one_error(tmp_path):
    root = write_cuhk(tmp_path)

    def spoil(rows):
        rows[0]["captions"] = [None]
        rows[1]["id"] = "abc"
        rows[2]["split"] = "dev"
        set_path(rows[3:4], "../outside.jpg")

    Copy(root).edit(spoil)
    with pytest.raises(DataError) as caught:
        load("cuhk-pedes", root)
    text = str(caught.value)
    assert "4 problems" in text
    for part in ("row 0: caption None", "row 1: id 'abc'", "row 2: split 'dev'", "`..` in a path", "reid_raw.json"):
        assert part in text


def test_the_most_complete_of_several_json_styles_is_read(tmp_path):
    root = write_copy("tbps-clip", tmp_path)
    write_json(root / "cuhk_train.json", [])
    _, jsons = find_jsons(CUHKPEDES, str(root))
    assert [(os.path.basename(path), split) for path, split in jsons] == [
        ("train_reid.json", "train"),
        ("val_reid.json", "validation"),
        ("test_reid.json", "test"),
    ]


# paths


@pytest.fixture
def linked(tmp_path):
    """A folder with links that stay inside, leave, and go round in circles."""
    root = tmp_path / "root"
    write_picture(root / "imgs" / "a.jpg", seed=0)
    write_picture(tmp_path / "secret" / "b.jpg", seed=1)
    (root / "imgs" / "same.jpg").symlink_to("a.jpg")
    (root / "imgs" / "out.jpg").symlink_to(tmp_path / "secret" / "b.jpg")
    (root / "away").symlink_to(tmp_path / "secret")
    (root / "imgs" / "loop.jpg").symlink_to("loop.jpg")
    (root / "round").symlink_to("about")
    (root / "about").symlink_to("round")
    return root


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hosts",
        "../secret/b.jpg",
        "imgs/../../secret/b.jpg",
        "imgs/..",
        "C:/b.jpg",
        "imgs\\a.jpg",
        "imgs/a.jpg\0",
        "imgs/\ud83d.jpg",
        "a" * 5000 + "/b.jpg",
        "",
        "imgs/out.jpg",
        "away/b.jpg",
        "imgs/loop.jpg",
        "round/b.jpg",
    ],
)
def test_a_path_that_leaves_the_root_is_refused(linked, path):
    with pytest.raises(UnsafePathError):
        SafeRoot(linked).resolve(path)


@pytest.mark.parametrize("path", ["imgs/a.jpg", "imgs/same.jpg", "imgs/./a.jpg", "imgs/none.jpg", "new/none.jpg"])
def test_a_path_that_stays_inside_is_resolved_though_it_need_not_exist(linked, path):
    resolved = SafeRoot(linked).resolve(path)
    assert os.path.realpath(resolved) == os.path.realpath(linked / path)


def test_a_linked_root_is_what_it_points_to(linked, tmp_path):
    (tmp_path / "link").symlink_to(linked)
    assert SafeRoot(tmp_path / "link").resolve("imgs/a.jpg") == str(linked / "imgs" / "a.jpg")


def test_a_base_does_not_make_an_absolute_path_relative(linked):
    with pytest.raises(UnsafePathError, match="absolute"):
        SafeRoot(linked).resolve("/a.jpg", base="imgs")


# json


def test_a_streamed_list_agrees_with_json_load(tmp_path):
    rows = [{"a": 1, "b": [1.5, None, True], "c": 'é\u4e2d"\\\n'}, [], "text", -(2**62), people(1)]
    write_json(tmp_path / "list.json", rows)
    assert list(iter_list(tmp_path / "list.json")) == rows
    assert [type(value) for value in next(iter_list(tmp_path / "list.json"))["b"]] == [float, type(None), bool]


def test_a_streamed_dict_agrees_with_json_load(tmp_path):
    content = {"x/1.jpg": "one", "": "two", "x.y": {"deep": [1]}}
    write_json(tmp_path / "dict.json", content)
    assert dict(iter_dict(tmp_path / "dict.json")) == content


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf \n[1, 2]")
    assert list(iter_list(tmp_path / "mark.json")) == [1, 2]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", JsonError, "empty file"),
        (b"[1, 2", JsonError, "after entry 2"),
        (b'[{"a": 1}, {"a": ', JsonError, "after entry 1"),
        (b"[1] trailing", JsonError, "after entry 1"),
        (b'["\xff\xfe"]', JsonError, "not valid json"),
        (b"[12345678901234567890]", JsonError, "integer overflow"),
        (b'["NaN", {"a": "\\"Infinity", "b": NaN}]', JsonNaNError, r"NaN at byte 33, after entry 1.*write null there"),
        (b"[1, [-Infinity, 2]]", JsonNaNError, "-Infinity at byte 5, after entry 1"),
        (b'{"a": 1}', JsonShapeError, "holds a dict"),
        (b"<html>", JsonShapeError, "starts with '<'"),
    ],
)
def test_a_bad_list_names_file_place_and_cure(tmp_path, content, error, words):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        list(iter_list(path))
    assert str(path) in str(caught.value)


def test_a_list_where_a_dict_belongs_is_told(tmp_path):
    write_json(tmp_path / "list.json", [])
    with pytest.raises(JsonShapeError, match="holds a list"):
        list(iter_dict(tmp_path / "list.json"))


# Near hits.


def zipped(root):
    with zipfile.ZipFile(root / "annotations.zip", "w") as archive:
        archive.write(root / "reid_raw.json")
    (root / "reid_raw.json").unlink()


def renamed(root, name):
    (root / "reid_raw.json").rename(root / name)


def without_splits(root):
    rows = json.loads((root / "reid_raw.json").read_text())
    write_json(
        root / "caption_all.json", [{name: row[name] for name in ("file_path", "captions", "id")} for row in rows]
    )
    (root / "reid_raw.json").unlink()


def into_a_folder_of_its_own_name(root):
    (root / "imgs").rename(root / "moved")
    (root / "imgs").mkdir()
    (root / "moved").rename(root / "imgs" / "imgs")


def with_upper_case_endings(root):
    for path in list((root / "imgs").rglob("*.*")):
        path.rename(path.with_suffix(path.suffix.upper()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (zipped, r"annotations\.zip lies there: unpack it"),
        (without_splits, r"caption_all\.json lies there, whose rows have no split; reid_raw\.json is the one"),
        (lambda root: renamed(root, "Reid_RAW.JSON"), r"Reid_RAW\.JSON lies there: rename it to reid_raw\.json"),
        (lambda root: renamed(root, "cuhk.json"), r"cuhk\.json lies there: .* as annotations"),
        (with_upper_case_endings, r"\.(JPG|PNG) lies there: rename the files"),
        (into_a_folder_of_its_own_name, r"lies there: pass .*imgs as image_root"),
    ],
    ids=["zip", "no-splits", "upper-case-json", "other-name", "upper-case-images", "imgs-imgs"],
)
def test_a_near_hit_is_named_with_its_cure(tmp_path, change, told):
    root = write_copy("cuhk", tmp_path)
    change(root)
    with pytest.raises(DataError, match=told) as raised:
        load("cuhk-pedes", root)
    if place := re.search(r"pass (\S+) as image_root", str(raised.value)):  # the cure works
        assert len(load("cuhk-pedes", root, image_root=place[1])["train"])
