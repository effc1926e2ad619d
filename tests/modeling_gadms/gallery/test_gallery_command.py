"""`python -m modeling_gadms.gallery`: every command, and mistakes in one line."""

import json
import os
import sys

import pytest
from tiny import save_published, tiny_rows

from modeling_gadms.gallery.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny checkpoint, and images in folders with their metadata and captions."""
    folder = tmp_path_factory.mktemp("command")
    save_published(folder / "model")
    lines, captions = ["uri,camera,seen"], ["uri,caption"]
    for index, row in enumerate(tiny_rows(12)):
        uri = f"{'day' if index % 2 else 'night'}/{index:02d}.png"
        (folder / "photos" / uri).parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / "photos" / uri)
        lines.append(f"{uri},{index % 3},2024-01-{index + 1:02d}")
        captions.append(f'{uri},"{row["caption1"]}"')
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    (folder / "photos.csv").write_text("\n".join(lines))
    (folder / "captions.csv").write_text("\n".join(captions))
    return folder


def test_a_gallery_is_made_asked_and_changed_by_commands(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def run(*words):
        assert main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "empty gallery" in run("create", "people", "--model", "model")
    assert "the gallery is empty" in run("search", "people", "a red coat")
    first = run("add", "people", "photos", "--metadata", "photos.csv", "--batch_size", "5")
    assert "12 added, 1 skipped; 12 images" in first and first.count("skipped broken.jpg: cannot be decoded") == 1
    assert "0 added, 12 unchanged" in run("add", "people", "photos")
    assert "broken.jpg" in run("stats", "people", "--skipped") and "images           12" in run("stats", "people")
    found = json.loads(run("search", "people", "a red coat", "red", "--where", "camera = 1", "--json"))
    assert len(found) == 4 and {hit["metadata"]["camera"] for hit in found} == {1}
    number = found[0]["id"]
    assert "no image satisfies" in run("search", "people", "a coat", "--where", "camera > 7")
    assert number not in run("search", "people", "--image", f"id:{number}", "--unlike", found[1]["id"], "--exact")
    assert [line.split()[-1] for line in run("explain", "people", number, "a red coat").splitlines()[1:]] == [
        *("a", "red", "coat")
    ]
    assert "1 updated" in run("update", "people", "--ids", number, "--values", '{"camera": 9}')
    assert len(run("search", "people", "a coat", "--where", "camera = 9").splitlines()) == 1
    assert "recall@10 1.000 for captions, 1.000" in run("check", "people", "--captions", "captions.csv")
    assert "calibrated on" in run("calibrate", "people", "--captions", "captions.csv", "--threshold", "0.99")
    assert "nobody here fits" in run("search", "people", "a coat")
    assert "12 rows" in run("export", "people", "--to", "parquet", "--target", "rows.parquet")
    assert "12 rows" in run("export", "people", "--to", "qdrant", "--url", "qdrant", "--quantization", "none")
    question = ("a red coat", "--where", "camera = 1", "--json")
    remote = json.loads(run("search", "people", *question, "--url", "qdrant"))
    for wrong, words in ((("people", "nonsense"), "no address"), (("s3://a/b", "qdrant"), "lies here")):
        assert main(["search", wrong[0], "a coat", "--url", wrong[1]]) == 2 and words in capsys.readouterr().err
    assert not os.path.exists("nonsense")
    assert [hit["id"] for hit in remote] == [hit["id"] for hit in json.loads(run("search", "people", *question))]
    assert "not recorded" in run("audit", "people")
    assert "recorded in" in run("audit", "people", "--switch", "on")
    run("search", "people", "a coat", "--purpose", "a lost child")
    run("explain", "people", number, "a coat", "--purpose", "a lost dog")
    searched, explained = map(json.loads, (place / "people" / "audit.jsonl").read_text().splitlines())
    assert (searched["query"], searched["purpose"]) == ("a coat", "a lost child")
    assert (explained["query"], explained["purpose"]) == ("explain a coat", "a lost dog")
    assert [hit["id"] for hit in explained["hits"]] == [number]
    (place / "photos" / "day" / "01.png").unlink()
    assert "1 removed" in run("sync", "people", "photos")
    assert "1 removed; 10 images" in run("remove", "people", "--where", "uri = 'night/00.png'")
    assert "1 new entries on the opt-out list, 5 images" in run("opt_out", "people", "--uri", "day/*")
    assert "5 opted out" in run("add", "people", "photos")


def test_a_mistake_ends_in_one_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(place / "model")
    assert main(["create", "people", "--model", model]) == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "rows.txt").touch()
    capsys.readouterr()
    for words, expected in (
        (["create", "people", "--model", model], "people: holds a gallery already"),
        (["create", "full", "--model", model], "full: exists and is not empty"),
        (["create", "new", "--model", "full"], "full: no model can be read there"),
        (["stats", "nowhere"], "nowhere: no gallery there"),
        (["add", "people", "nowhere"], "nowhere: no such file or folder"),
        (["add", "people", "rows.txt"], "rows.txt: images come from a folder"),
        (["add", "people", "full", "--metadata", "rows.txt"], "rows.txt: metadata is read from .csv"),
        (["sync", "people", "nowhere"], "nowhere: no such folder"),
        (["search", "people"], "nothing is asked"),
        (["search", "people", " "], "the description is empty"),
        (["search", "people", "a" * 2000], "a description of 2,000 characters"),
        (["search", "people", "a coat", "--where", "size = 3"], "no column 'size', only id, source, uri"),
        (["search", "people", "a coat", "--collapse", "track"], "no column 'track' to collapse by"),
        (["search", "people", "a coat", "--top", "0"], "--top must be at least 1"),
        (["search", "people", "--image", "id:none"], "no image with the id 'none'"),
        (["search", "people", "--image", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["remove", "people"], "nothing says what to remove"),
        (["update", "people", "--ids", "1", "--values", "3"], "not an object"),
        (["rebuild", "people", "--model", model], "made by this model already"),
        (["calibrate", "people", "--captions", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["opt_out", "people", "--sha256", "12"], "'sha256:12' is not an entry"),
        (["export", "people", "--to", "parquet", "--target", "rows.txt"], "rows.txt: exists already"),
    ):
        assert main(words) == 2, words
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and expected in errors[0] and not errors[0].endswith("."), (words, lines)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lancedb", None)
        assert main(["stats", "people"]) == 2
        assert "lancedb, which is not installed; pip install gadms[gallery]" in capsys.readouterr().err
    assert main(["audit", "people", "--switch", "on"]) == 0
    assert main(["search", "people", "a coat"]) == 2
    assert "say what the search is for" in capsys.readouterr().err
    assert main(["explain", "people", "none", "a coat"]) == 2
    assert "say what the search is for" in capsys.readouterr().err
