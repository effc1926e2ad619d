"""Persons are cut out of the pictures of CUHK-SYSU-TBPS and PRW-TBPS, and searched like those of other benchmarks."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_up_datasets import caption
from made_up_person_search import SCENES, WRITERS, cells, matlab, structs, write_prw
from PIL import Image

from dataset_webperson.doctor import main as doctor
from dataset_webperson.findings import DataError
from dataset_webperson.person_search_crops import main
from dataset_webperson.readers.benchmarks import load_benchmark


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A clean copy of each, with its crops in a folder beside it."""
    folder = tmp_path_factory.mktemp("copies")
    for name, write in WRITERS.items():
        write(folder / name)
        assert main([str(folder / name), "--output_dir", str(folder / f"{name}-crops")]) == 0
    return folder


def crops(folder):
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_box_that_is_searched_is_cut_and_the_described_ones_of_train(copies, name):
    rows = crops(copies / f"{name}-crops")
    found = sorted((row["split"], Path(row["picture"]).stem, row["id"], len(row["captions"])) for row in rows)
    assert found == [
        ("test", "five", 0, 0),  # person 12, whom nobody describes
        ("test", "five", 10, 0),
        ("test", "four", 9, 0),
        ("test", "four", 10, 2),
        ("test", "three", 0, 0),
        ("test", "three", 9, 2),
        ("train", "one", 5, 2),
        ("train", "one", 6, 2),
        ("train", "two", 5, 1),
    ]
    for row in rows:
        boxes = SCENES[row["split"], Path(row["picture"]).stem]
        assert tuple(row["box"]) in boxes.values()
    four = next(row for row in rows if row["picture"] == "four.jpg" and row["captions"])
    texts = [caption(10 + piece + 10) for piece in range(3)]
    assert four["captions"] == [texts[0], f"{texts[1]} {texts[2]}"], "empty pieces are left out, the rest joined"


def test_a_crop_is_the_box_rounded_outwards(copies):
    (row,) = [
        row for row in crops(copies / "PRW-TBPS-crops") if row["box"] == [60.5, 12.25, 30.25, 70] and row["id"] == 9
    ]
    with Image.open(copies / "PRW-TBPS-crops" / "imgs" / row["file_path"]) as crop:
        assert crop.size == (31, 71)
        with Image.open(copies / "PRW-TBPS" / "frames" / "four.jpg") as picture:
            whole = picture.crop((60, 12, 91, 83))
        assert np.abs(np.asarray(crop, int) - np.asarray(whole, int)).mean() < 3


@pytest.mark.parametrize("name", list(WRITERS))
def test_crops_are_a_benchmark_whose_images_may_have_no_caption(copies, name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_benchmark(name, copies)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "test": 6}
    assert sum(not captions for captions in data["test"]["captions"]) == 4
    assert doctor([str(copies / f"{name}-crops"), "--output_dir", str(tmp_path)]) == 0
    (report,) = json.loads((tmp_path / "report.json").read_text())["datasets"]
    assert report["name"] == name and report["findings"] == []


def test_crops_that_are_there_already_are_kept(copies, tmp_path):
    shutil.copytree(copies / "PRW-TBPS-crops", tmp_path / "crops")
    (tmp_path / "crops" / "PRW-TBPS.json").unlink()
    first, second = sorted((tmp_path / "crops").rglob("*.jpg"))[:2]
    first.unlink()
    second.write_bytes(b"kept")
    assert main([str(copies / "PRW-TBPS"), "--output_dir", str(tmp_path / "crops")]) == 0
    assert first.read_bytes() and second.read_bytes() == b"kept"
    assert crops(tmp_path / "crops") == crops(copies / "PRW-TBPS-crops")


def test_the_pictures_themselves_are_told_to_be_cut_first(copies):
    with pytest.raises(DataError, match=r"PRW-TBPS_test lies there, of which it is made: cut the crops, python -m"):
        load_benchmark("prw-tbps", copies / "PRW-TBPS")


def edit(change, split="test"):
    def plant(root):
        path = root / f"PRW-TBPS_{split}"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps(change(rows) or rows))

    return plant


def save(path, **content):
    def plant(root):
        matlab()(root / path, content)

    return plant


DEFECTS = {
    "no descriptions": (lambda root: (root / "PRW-TBPS_test").unlink(), "PRW-TBPS_test: the descriptions of test"),
    "cut off": (lambda root: (root / "PRW-TBPS_test").write_text('[{"pic'), "not valid json after entry 0"),
    "a dict": (edit(lambda rows: {"rows": rows}), "holds a dict at its top"),
    "a string": (edit(lambda rows: ["text", *rows]), "row 0: 'text'"),
    "no id": (edit(lambda rows: rows[0].pop("id") and None), "row 0: no `id`"),
    "no text": (edit(lambda rows: rows[0].pop("desrciption") and None), "row 0: no `desrciption` or `description`"),
    "id as text": (edit(lambda rows: rows[0].update(id="9")), "row 0: id '9'"),
    "only empty texts": (edit(lambda rows: rows[0].update(desrciption=["", " "])), "row 0: three.jpg, person 9"),
    "number for a text": (edit(lambda rows: rows[0].update(desrciption=[1])), "row 0: caption 1"),
    "wrong person": (edit(lambda rows: rows[0].update(id=77)), "row 0: person 77 has no box in three.jpg"),
    "picture out of the folder": (edit(lambda rows: rows[0].update(pic_path="../three.jpg")), "`..` in a path"),
    "picture deleted": (lambda root: (root / "frames" / "three.jpg").unlink(), "three.jpg: no such file"),
    "picture cut off": (lambda root: (root / "frames" / "three.jpg").write_bytes(b"<html>"), "image unreadable"),
    "no annotation": (lambda root: (root / "annotations" / "one.jpg.mat").unlink(), "one.jpg.mat: no such file"),
    "broken annotation": (lambda root: (root / "frame_test.mat").write_bytes(b"none"), "not a MATLAB file"),
    "another variable": (save("frame_test.mat", other=1), "expected the variable img_index_test, found other"),
    "another table": (
        save("annotations/one.jpg.mat", box_new=np.ones((2, 4))),
        "expected rows of person, x, y, width",
    ),
}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_a_planted_defect_is_one_line_and_leaves_no_json(defect, tmp_path, capsys):
    plant, words = DEFECTS[defect]
    plant(write_prw(tmp_path / "PRW-TBPS"))
    assert main([str(tmp_path / "PRW-TBPS"), "--output_dir", str(tmp_path / "crops")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "crops" / "PRW-TBPS.json").exists()


def test_what_only_costs_a_row_is_told(tmp_path, capsys):
    root = write_prw(tmp_path / "PRW-TBPS")
    edit(lambda rows: [*rows, rows[0]])(root)
    save("annotations/five.jpg.mat", box_new=np.array([[10, 500, 10, 45, 99], [12, 90, 10, 30, 80]], float))(root)
    assert main([str(root), "--output_dir", str(tmp_path / "crops")]) == 0
    said = capsys.readouterr().out
    assert "row 2: person 9 of three.jpg is described before" in said and "five.jpg: box 500, 10 to 545, 109" in said
    assert "train 3, test 5 crops" in said


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "Person.mat",
            {"Person": structs([("q", 1.0)], "idname", "nAppear")},
            "expected Person to have idname, scene",
        ),
        (
            "Person.mat",
            {"Person": structs([("q7", structs([("one.jpg", np.ones(4))], "imname", "idlocate"))], "idname", "scene")},
            "expected idname such as p12, found 'q7'",
        ),
        (
            "Images.mat",
            {"Img": structs([("one.jpg", structs([(np.ones(3),)], "idlocate"))], "imname", "box")},
            "expected idlocate to be x, y, width, height",
        ),
        ("pool.mat", {"pools": cells(["three.jpg"])}, "expected the variable pool, found pools"),
    ],
)
def test_annotations_of_cuhk_sysu_in_another_form_are_told_by_what_was_expected(
    file, content, words, tmp_path, capsys
):
    root = WRITERS["CUHK-SYSU-TBPS"](tmp_path / "CUHK-SYSU-TBPS")
    matlab()(root / "annotation" / file, content)
    assert main([str(root), "--output_dir", str(tmp_path / "crops")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert file in error and words in error


def test_a_folder_of_another_name_needs_the_dataset_option(tmp_path, capsys):
    root = write_prw(tmp_path / "mine")
    assert main([str(root), "--output_dir", str(tmp_path / "crops")]) == 2
    assert "no person search data set 'mine'; known: cuhk-sysu-tbps, prw-tbps" in capsys.readouterr().err
    assert main([str(root), "--output_dir", str(tmp_path / "crops"), "--dataset", "prw-tbps"]) == 0
