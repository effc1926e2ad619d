"""Market-1501 and MSMT17 become queries and a gallery with cameras, and what is wrong with a copy is named."""

import json
import shutil
import warnings

import pytest
from made_up_datasets import Copy
from made_up_datasets import write_copy as write_captioned
from made_up_reidentification import GALLERY, QUERIES, WRITERS, write_copy, write_market

from dataset_webperson.doctor import main
from dataset_webperson.findings import KINDS, DataError
from dataset_webperson.readers.benchmark_copy import Counts
from dataset_webperson.readers.reidentification import Market1501, load_reidentification

PERSONS = {"market-1501": 0, "msmt17": 3}  # what is taken from the persons of the helper


def load(name, root, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_reidentification(name, root, on_count_mismatch="warn", **options)


def examine(root, output, *options):
    """Exit code, and findings by code."""
    code = main([str(root), "--output_dir", str(output), "--num_workers", "1", *options])
    (report,) = json.loads((output / "report.json").read_text())["datasets"]
    return code, {finding["code"]: finding for finding in report["findings"]}, report


@pytest.mark.parametrize("name", list(WRITERS))
def test_queries_and_gallery_have_persons_and_cameras(tmp_path, name):
    write_copy(name, tmp_path)
    data = load(name, tmp_path)  # the folder above
    shift = PERSONS[name]
    nobody = [(0, 1), (0, 2)] if name == "market-1501" else []
    for part, expected in (("query", QUERIES), ("gallery", (*nobody, *GALLERY))):
        found = list(zip(data[part]["person_id"], data[part]["camera"], strict=True))
        expected = [(person - shift if person else 0, camera) for person, camera in expected]
        assert sorted(found) == sorted(expected)
        assert data[part][0]["image"].size == (48, 96) and data[part]["captions"][:] == [[]] * len(found)


def test_official_counts_load_without_a_word_and_distractors_are_images_of_nobody(tmp_path, monkeypatch):
    root = write_market(tmp_path)
    with pytest.raises(DataError, match=r"gallery has 3 ids, 9 images; official: 750 ids, 15,913 images; get it at"):
        load_reidentification("Market_1501", root)
    monkeypatch.setattr(Market1501, "official", {"query": Counts(2, 3, 0), "gallery": Counts(3, 9, 0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_reidentification("market-1501", root)["gallery"]) == 9


def test_msmt17_in_the_layout_of_market_has_no_distractors(tmp_path):
    data = load("msmt17", write_market(tmp_path / "MSMT17_V2"))
    assert len(data["gallery"]) == 9 and data["gallery"]["person_id"].count(0) == 2
    code, findings, report = examine(tmp_path / "MSMT17_V2", tmp_path / "out", "--partial")
    assert report["name"] == "MSMT17" and report["counts"]["gallery"]["ids"] == 4


def rewrite(change):
    """A defect of the lists of MSMT17: `change` gets the lines of the queries."""

    def plant(root):
        path = root / "list_query.txt"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return plant


def first(root, part="query"):
    return sorted(path for path in root.rglob("*.jpg") if part in str(path.relative_to(root)))[0]


def list_twice(root):
    with open(root / "list_gallery.txt", "a") as file:
        file.write((root / "list_query.txt").read_text().splitlines()[0] + "\n")


def another_id(lines):
    path = lines[0].split(" ")[0]
    return [f"{path} 2\n", *lines[1:]]


DEFECTS = {
    "no gallery": ("folder-missing", "market-1501", lambda root: shutil.rmtree(root / "bounding_box_test")),
    "no list": ("folder-missing", "msmt17", lambda root: (root / "list_gallery.txt").unlink()),
    "renamed": ("image-name", "market-1501", lambda root: first(root).rename(root / "query" / "first.jpg")),
    "listed under another name": ("image-name", "msmt17", rewrite(lambda lines: ["0000/a.jpg 0\n", *lines])),
    "line without a person": ("list-line", "msmt17", rewrite(lambda lines: ["0000/0000_000_01_a.jpg\n", *lines])),
    "another id": ("id-differs-from-name", "msmt17", rewrite(another_id)),
    "path out of the folder": ("path-unsafe", "msmt17", rewrite(lambda lines: ["../0000_000_01_a.jpg 0\n", *lines])),
    "link out of the folder": ("path-unsafe", "market-1501", lambda root: link_out(root)),
    "image deleted": ("image-missing", "msmt17", lambda root: first(root, "0000/").unlink()),
    "image of 0 bytes": ("image-empty", "market-1501", lambda root: first(root).write_bytes(b"")),
    "image is a web page": ("image-unreadable", "market-1501", lambda root: first(root).write_text("<html>")),
    "query in the gallery": ("image-two-splits", "msmt17", list_twice),
    "no match elsewhere": ("query-unmatched", "market-1501", lambda root: unmatched(root)),
    "query of nobody": (
        "query-unmatched",
        "market-1501",
        lambda root: first(root).rename(root / "query" / "0000_c9s1_000001_01.jpg"),
    ),
}


def link_out(root):
    outside = root.parent / "0003_c1s1_000001_01.jpg"
    first(root).rename(outside)
    (root / "query" / outside.name).symlink_to(outside)


def unmatched(root):
    """Of the person of the third query, the gallery keeps an image by the query's own camera alone."""
    (last,) = (root / "query").glob("0005_c4*")
    shutil.copy(last, root / "bounding_box_test" / "0005_c4s1_000001_01.jpg")
    for path in [*(root / "bounding_box_test").glob("0005_c[16]*")]:
        path.unlink()


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_a_planted_defect_is_named_and_refused_where_it_is_an_error(tmp_path, capsys, defect):
    expected, name, plant = DEFECTS[defect]
    root = write_copy(name, tmp_path)
    plant(root)
    code, findings, _ = examine(root, tmp_path / "out", "--partial")
    assert findings[expected]["count"] == 1 and findings[expected]["examples"][0]["text"]
    assert set(findings) - {"counts-differ"} == {expected}
    assert KINDS[expected].title in capsys.readouterr().out
    assert code == int(KINDS[expected].severity == "error")
    if code and expected != "image-unreadable":
        with pytest.raises(DataError, match=KINDS[expected].title):
            load(name, root)
    else:
        assert list(load(name, root)) == ["query", "gallery"]


def test_missing_images_are_left_out_on_request(tmp_path):
    root = write_copy("msmt17", tmp_path)
    first(root, "0000/").unlink()
    with pytest.raises(DataError, match=r"33 % of the images of `query/` are missing \(1 of 3\)"):
        load("msmt17", root)
    assert len(load("msmt17", root, on_missing_images="skip")["query"]) == 2
    (root / "list_gallery.txt").write_text("")
    with pytest.raises(DataError, match="no usable image in the gallery"):
        load("msmt17", root, on_missing_images="skip")


def test_the_doctor_names_a_benchmark_that_trains_on_what_is_searched_here(tmp_path, capsys):
    """As ICFG-PEDES and RSTPReid may, which come from MSMT17."""
    icfg, msmt = write_captioned("icfg", tmp_path), write_copy("msmt17", tmp_path)
    shutil.copy(first(msmt, "0002/"), Copy(icfg).image(-1))
    assert main([str(icfg), str(msmt), "--output_dir", str(tmp_path / "out"), "--partial"]) == 0
    of_icfg, of_msmt = json.loads((tmp_path / "out" / "report.json").read_text())["datasets"]
    (found,) = [f for f in of_icfg["findings"] if f["code"] == "image-elsewhere-held-out"]
    assert found["count"] == 1 and "in query of MSMT17: 0 of 64 bits differ" in found["examples"][0]["text"]
    assert main([str(msmt), "--output_dir", str(tmp_path / "out"), "--image_root", str(tmp_path)]) == 2
    assert "MSMT17 has neither" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="no re-identification data set 'duke'; known: market-1501, msmt17"):
        load_reidentification("duke", tmp_path)
