"""The doctor names every planted defect in every format, passes clean copies, resumes, and reports safely."""

import base64
import html
import io
import json
import os
import re
import sys
from pathlib import Path

import forked
import made_up_webperson
import numpy as np
import pytest
from made_up_datasets import (
    BENCHMARK_WRITERS,
    CORPUS_WRITERS,
    WRITERS,
    Copy,
    caption_field,
    id_field,
    path_field,
    set_caption,
    set_path,
    write_copy,
    write_json,
    write_picture,
)
from PIL import Image
from places import REPO
from test_images import write_png_header

from dataset_webperson import image_audit
from dataset_webperson.caption_checks import (
    caption_problems,
    estimate_tokens,
    foreign_characters,
    has_code,
    is_template_leak,
)
from dataset_webperson.doctor import main
from dataset_webperson.findings import KINDS, MAX_EXAMPLES, DataError, Findings, share
from dataset_webperson.image_audit import audit_images, examine_image
from dataset_webperson.readers.benchmarks import COUNT_KINDS, load_benchmark
from dataset_webperson.readers.corpora import load_corpus
from dataset_webperson.rows.cleaning import usable_captions

OFFICIAL = ("cuhk", "icfg", "rstp", "ufine", "iiitd")  # one json whose rows hold their split
LIST_BENCHMARKS = (*OFFICIAL, "tbps-clip", "rasa", "aptm")
LISTS = (*LIST_BENCHMARKS, "ufine3c", "mals", "synth")
WITH_IDS = (*LIST_BENCHMARKS, "ufine3c", "synth")
CONTENT = ("cuhk", "aptm", "mals", "luperson")  # what is in a file or a caption is looked at in one way
NOT_BY_NAME = tuple(style for style in WRITERS if style != "luperson")  # whose captions are joined on file names


def run(root: Path, output: Path, *options: str) -> tuple[int, dict, str]:
    """Exit code, the one dataset's part of report.json, and the HTML page."""
    code = main([str(root), "--output_dir", str(output), *options])
    report = json.loads((output / "report.json").read_text())
    assert report["exit_code"] == code
    assert len(report["datasets"]) == 1
    return code, report["datasets"][0], (output / "report.html").read_text()


def codes(report: dict) -> set[str]:
    return {finding["code"] for finding in report["findings"]}


@pytest.mark.parametrize("style", list(WRITERS))
def test_a_clean_copy_passes_and_is_recognised(tmp_path, style):
    root = write_copy(style, tmp_path)
    code, report, _ = run(root, tmp_path / "out", "--partial")
    assert code == 0
    assert report["name"] == WRITERS[style][0]
    assert codes(report) <= set(COUNT_KINDS)
    assert report["images_examined"] == report["images_named"] > 0
    # Nothing was written into the dataset itself.
    assert not [path for path in root.rglob("*") if path.name.startswith(("report", "images-"))]


@pytest.mark.parametrize("style", list(BENCHMARK_WRITERS))
def test_counts_that_are_not_official_break_training_unless_the_copy_is_partial_on_purpose(tmp_path, style):
    root = write_copy(style, tmp_path)
    code, report, _ = run(root, tmp_path / "out")
    assert code == 1
    assert "counts-differ" in codes(report)
    assert {finding["severity"] for finding in report["findings"]} == {"error"}


# Defects. Each function plants one in a written copy.


def of_another_person(rows: list[dict]) -> int:
    """The number of the first row of a person other than the first row's."""
    return next(n for n, row in enumerate(rows) if row[id_field(row)] != rows[0][id_field(rows[0])])


def edit(change, split: str | None = None):
    """A defect of the rows: `change` gets the content of a json, the one of `split` where splits have their own."""
    return lambda copy: copy.edit(change, copy.json_of(split) if split else 0)


def cut_json(copy: Copy) -> None:
    copy.jsons[0].write_bytes(copy.jsons[0].read_bytes()[:-7])


def write_nan(copy: Copy) -> None:
    path = copy.jsons[0]
    text = path.read_text()
    path.write_text(text.replace("[", "[NaN, ", 1) if text.startswith("[") else text.replace("{", '{"x": NaN, ', 1))


def remove_jsons(copy: Copy) -> None:
    for path in copy.jsons:
        path.unlink()


def wrong_shape(content):
    return list(content) if isinstance(content, dict) else {"rows": content}


def remove_test_split(copy: Copy) -> None:
    number = copy.json_of("test")
    if "test" in copy.jsons[number].name:
        copy.jsons[number].unlink()
    else:
        copy.edit(lambda rows: [row for row in rows if row["split"] != "test"])


def person_in_two_splits(copy: Copy) -> None:
    train = json.loads(copy.jsons[copy.json_of("train")].read_text())[0]

    def change(rows):
        row = next(row for row in rows if row.get("split", "test") == "test")
        row[id_field(row)] = train[id_field(train)]

    copy.edit(change, copy.json_of("test"))


def image_in_two_splits(copy: Copy) -> None:
    train = json.loads(copy.jsons[copy.json_of("train")].read_text())[0]

    def change(rows):
        row = next(row for row in rows if row.get("split", "test") == "test")
        row[path_field(row)], row[id_field(row)] = train[path_field(train)], train[id_field(train)]

    copy.edit(change, copy.json_of("test"))


def image_of_two_persons(rows):
    other = rows[of_another_person(rows)]
    other[path_field(other)] = rows[0][path_field(rows[0])]


def repeat_row(rows):
    rows.append(rows[-1])


def change_person(rows):
    """Give the last row the unused id 4321."""
    rows[-1][id_field(rows[-1])] = 4321


def share_caption(content):
    if isinstance(content, dict):
        keys = list(content)
        content[keys[1]] = content[keys[0]]
        return
    ids = [row.get("id", row.get("image_id")) for row in content]
    other = next(n for n, person in enumerate(ids) if person != ids[0])
    first = content[0][caption_field(content[0])]
    set_caption(content, first if isinstance(first, str) else first[0], other)


def no_captions(rows):
    rows[0][caption_field(rows[0])] = []


def link_out(copy: Copy) -> None:
    path = copy.image()
    outside = copy.root.parent / "outside.jpg"
    write_picture(outside, seed=1)
    path.unlink()
    path.symlink_to(outside)


def link_loop(copy: Copy) -> None:
    path = copy.image()
    path.unlink()
    path.symlink_to(path.name)


def truncate_image(copy: Copy) -> None:
    path = copy.image()
    path.write_bytes(path.read_bytes()[:-200])


def text_for_image(copy: Copy) -> None:
    copy.image().write_text("<html>not found</html>")


def save_as(make):
    def plant(copy: Copy) -> None:
        path = copy.image()
        with Image.open(path) as image:
            image.load()
        make(image, path)

    return plant


def save_rotated(image, path):
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    image.save(path, "JPEG", exif=exif)


def save_16_bit(image, path):
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")


def near_duplicate(copy: Copy) -> None:
    """A test picture becomes a re-encoded, smaller copy of a training picture."""

    def first_of(split: str) -> Path:
        rows = json.loads(copy.jsons[copy.json_of(split)].read_text())
        row = next(row for row in rows if row.get("split", split) == split)
        return next(copy.root.rglob(Path(row[path_field(row)]).name))

    with Image.open(first_of("train")) as image:
        small = image.convert("RGB").resize((40, 80))
    small.save(first_of("test"), "JPEG", quality=70)


def same_name_twice(content):
    content[f"elsewhere/{Path(next(iter(content))).name}"] = "Another caption for the same name."


# name: (code, styles it can be planted in, how)
DEFECTS = {
    "no json": ("json-missing", WRITERS, remove_jsons),
    "json cut off": ("json-broken", WRITERS, cut_json),
    "list for dict or dict for list": ("json-wrong-shape", WRITERS, edit(wrong_shape)),
    "row is a string": ("row-not-object", LISTS, edit(lambda rows: ["text", *rows])),
    "no captions field": ("field-missing", LISTS, edit(lambda rows: rows[0].pop(caption_field(rows[0])) and None)),
    "no path field": ("field-missing", LISTS, edit(lambda rows: rows[0].pop(path_field(rows[0])) and None)),
    "no id field": ("field-missing", WITH_IDS, edit(lambda rows: rows[-1].__delitem__(id_field(rows[-1])))),
    "no split field": ("field-missing", OFFICIAL, edit(lambda rows: rows[0].pop("split") and None)),
    "split dev": ("split-unknown", (*OFFICIAL, "ufine3c"), edit(lambda rows: rows[0].update(split="dev"))),
    "no test split": ("split-missing", [style for style in LIST_BENCHMARKS if style != "ufine"], remove_test_split),
    "id is text": ("id-not-integer", WITH_IDS, edit(lambda rows: rows[0].update({id_field(rows[0]): "x1"}))),
    "id is a fraction": ("id-not-integer", WITH_IDS, edit(lambda rows: rows[0].update({id_field(rows[0]): 1.5}))),
    "id in quotes": ("id-as-string", WITH_IDS, edit(lambda rows: rows[0].update({id_field(rows[0]): "0001"}))),
    "id too small": ("id-below-first", LIST_BENCHMARKS, edit(lambda rows: rows[0].update({id_field(rows[0]): -1}))),
    "id not the name's": ("id-differs-from-name", ("rstp", "rasa"), edit(change_person)),
    "person in train and test": ("person-two-splits", LIST_BENCHMARKS, person_in_two_splits),
    "json with NaN": ("json-nan", WRITERS, write_nan),
    "absolute path": ("path-unsafe", NOT_BY_NAME, edit(lambda content: set_path(content, "/etc/hosts.jpg"))),
    "path with ..": ("path-unsafe", WRITERS, edit(lambda content: set_path(content, "a/../../b.jpg"))),
    "path is a number": ("path-unsafe", LISTS, edit(lambda rows: set_path(rows, 5))),
    "link out of the folder": ("path-unsafe", WRITERS, link_out),
    "link to itself": ("path-unsafe", WRITERS, link_loop),
    "image deleted": ("image-missing", WRITERS, lambda copy: copy.image().unlink()),
    "image of 0 bytes": ("image-empty", WRITERS, lambda copy: copy.image().write_bytes(b"")),
    "image cut off": ("image-unreadable", WRITERS, truncate_image),
    "image is a web page": ("image-unreadable", WRITERS, text_for_image),
    "image is a bomb": ("image-bomb", WRITERS, lambda copy: write_png_header(copy.image(), 60_000, 60_000)),
    "row twice": ("image-two-rows", LIST_BENCHMARKS, lambda copy: copy.edit(repeat_row, copy.json_of("test"))),
    "image of two persons": ("image-two-persons", LIST_BENCHMARKS, edit(image_of_two_persons)),
    "image in two splits": ("image-two-splits", LIST_BENCHMARKS, image_in_two_splits),
    "cmyk": ("image-mode", CONTENT, save_as(lambda image, path: image.convert("CMYK").save(path, "JPEG"))),
    "16 bit": ("image-mode", CONTENT, save_as(save_16_bit)),
    "palette with alpha": (
        "image-mode",
        CONTENT,
        save_as(lambda image, path: image.convert("P").save(path, "PNG", transparency=0)),
    ),
    "rotated": ("image-rotated", CONTENT, save_as(save_rotated)),
    "near-duplicate": ("near-duplicate", LIST_BENCHMARKS, near_duplicate),
    "caption null": ("caption-not-text", WRITERS, edit(lambda content: set_caption(content, None))),
    "caption number": ("caption-not-text", WRITERS, edit(lambda content: set_caption(content, 12))),
    "no captions": ("captions-missing", LISTS, edit(no_captions)),
    "caption empty": ("caption-empty", WRITERS, edit(lambda content: set_caption(content, "  "))),
    "caption in chinese": (
        "caption-foreign-script",
        CONTENT,
        edit(lambda content: set_caption(content, "A man \u7a7f\u7740 a coat.")),
    ),
    "caption with code": (
        "caption-code",
        CONTENT,
        edit(lambda content: set_caption(content, 'A man console.log("x"); in a coat')),
    ),
    "caption with description]": (
        "caption-template-leak",
        CONTENT,
        edit(lambda content: set_caption(content, "detailed description] A man.")),
    ),
    "caption with <": (
        "caption-template-leak",
        CONTENT,
        edit(lambda content: set_caption(content, "A man in a < colour coat.")),
    ),
    "caption shared": ("caption-shared", WRITERS, edit(share_caption)),
    "caption long": ("caption-long", WRITERS, edit(lambda content: set_caption(content, "A man " + "walks on " * 50))),
    "file name twice": ("name-twice", ("luperson",), edit(same_name_twice)),
}
CASES = [(style, defect) for defect, (_, styles, _) in DEFECTS.items() for style in styles]


@pytest.mark.parametrize(("style", "defect"), CASES)
def test_a_planted_defect_is_named(tmp_path, capsys, style, defect):
    root = write_copy(style, tmp_path)
    expected, _, plant = DEFECTS[defect]
    plant(Copy(root))
    code, report, page = run(root, tmp_path / "out", "--partial")
    assert expected in codes(report)
    finding = next(finding for finding in report["findings"] if finding["code"] == expected)
    assert finding["count"] >= 1 and finding["examples"][0]["text"]
    assert KINDS[expected].title in capsys.readouterr().out
    assert KINDS[expected].title in html.unescape(page)
    breaks = any(finding["severity"] == "error" for finding in report["findings"])
    assert code == int(breaks)
    if KINDS[expected].severity == "error" and expected not in COUNT_KINDS:
        assert code == 1


FOUND_BY_DECODING = ("image-unreadable", "image-bomb")


@pytest.mark.filterwarnings("ignore:.*Cure")
@pytest.mark.parametrize(
    ("style", "defect"),
    [
        case
        for case in CASES
        if KINDS[DEFECTS[case[1]][0]].severity == "error" and DEFECTS[case[1]][0] not in COUNT_KINDS
    ],
)
def test_what_the_doctor_calls_an_error_the_reader_refuses_unless_it_takes_decoding(tmp_path, style, defect):
    root = write_copy(style, tmp_path)
    code, _, plant = DEFECTS[defect]
    plant(Copy(root))
    name = WRITERS[style][0]

    def load():
        if style in CORPUS_WRITERS:
            return load_corpus(name, root, cache_dir=tmp_path / "cache")
        return load_benchmark(name, root, on_count_mismatch="warn")

    if code in FOUND_BY_DECODING:
        load()
        return
    with pytest.raises(DataError, match=re.escape(KINDS[code].title)):
        load()


def test_every_kind_of_defect_is_planted_somewhere():
    planted = {code for code, _, _ in DEFECTS.values()}
    # Several images of one row are a defect of tars: tests/dataset_webperson/rows/test_webperson_local.py
    # what two datasets share: test_overlap.py
    between = {"image-elsewhere-held-out", "person-elsewhere-held-out"}
    # of re-identification: readers/test_reidentification.py
    between |= {"folder-missing", "list-line", "image-name", "query-unmatched"}
    between |= {"box-missing", "box-outside"}  # of pictures: test_person_search_crops.py
    assert planted | {"counts-differ", "old-copy", "image-several"} | between == set(KINDS)


def test_an_old_copy_is_named(tmp_path):
    rows, person = [], 0
    for split, size in (("train", 3901), ("val", 100), ("test", 100)):
        for _ in range(size):
            rows.append({"id": person, "img_path": f"{person:04d}.jpg", "captions": [f"{person}"], "split": split})
            person += 1
    write_json(tmp_path / "RSTPReid" / "data_captions.json", rows)
    code, report, _ = run(tmp_path / "RSTPReid", tmp_path / "out")
    assert code == 1
    assert {"old-copy", "image-missing"} == codes(report)
    missing = next(finding for finding in report["findings"] if finding["code"] == "image-missing")
    assert "100 % of the images of `imgs/`" in missing["detail"]
    assert missing["count"] == 4101 and len(missing["examples"]) == MAX_EXAMPLES


def test_several_datasets_below_one_folder_are_all_examined(tmp_path, capsys):
    for style in ("cuhk", "aptm", "mals"):
        write_copy(style, tmp_path / "data")
    assert main([str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--partial"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [dataset["name"] for dataset in report["datasets"]] == ["CUHK-PEDES", "ICFG-PEDES", "MALS"]
    assert main([str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--image_root", str(tmp_path)]) == 2
    assert "need --dataset" in capsys.readouterr().err


def test_jsons_without_a_telling_name_need_the_dataset_option(tmp_path, capsys):
    root = WRITERS["tbps-clip"][1](tmp_path / "mine")
    assert main([str(root), "--output_dir", str(tmp_path / "out"), "--partial"]) == 2
    assert "with --dataset" in capsys.readouterr().err
    assert main([str(root), "--output_dir", str(tmp_path / "out"), "--partial", "--dataset", "cuhk-pedes"]) == 0


def test_a_wrong_dataset_or_folder_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--dataset", "coco"]) == 2
    assert "no corpus 'coco'" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def broken_tokenizer(folder):
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    "mistake", ["file-as-folder", "output", "no-images", "no-workers", "no-tokenizer", "tokenizer"]
)
def test_a_mistake_in_the_command_is_one_line_and_code_2(mistake, tmp_path, capsys):
    root = write_copy("rstp", tmp_path)
    (tmp_path / "file").write_text("")
    arguments = {
        "file-as-folder": [str(tmp_path / "file")],
        "output": [str(root), "--output_dir", str(tmp_path / "file")],
        "no-images": [str(root), "--max_images", "0"],
        "no-workers": [str(root), "--num_workers", "0"],
        "no-tokenizer": [str(root), "--tokenizer", str(tmp_path / "nowhere")],
        "tokenizer": [str(root), "--tokenizer", str(broken_tokenizer(tmp_path / "tokenizer"))],
    }[mistake]
    assert main(["--output_dir", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_the_command_line_gives_the_exit_code_and_a_progress_bar(tmp_path):
    root = write_copy("rstp", tmp_path)
    command = ["-m", "dataset_webperson.doctor", root, "--output_dir", tmp_path / "out"]
    bad = forked.run(command, cwd=REPO)
    good = forked.run([*command, "--partial"], cwd=REPO)
    assert (bad.returncode, good.returncode) == (1, 0), bad.stderr + good.stderr
    assert "RSTPReid images: 100%" in good.stderr
    assert "counts differ" in good.stdout


# resuming


def test_a_second_run_decodes_only_what_changed(tmp_path, monkeypatch):
    root = write_copy("cuhk", tmp_path)
    run(root, tmp_path / "out", "--partial")
    copy = Copy(root)
    truncate_image(copy)
    decoded = []
    monkeypatch.setattr(image_audit, "examine_image", lambda file: decoded.append(file) or examine_image(file))
    code, report, _ = run(root, tmp_path / "out", "--partial")
    assert decoded == [str(copy.image())]
    assert code == 1 and "image-unreadable" in codes(report)


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    root = write_copy("cuhk", tmp_path)
    run(root, tmp_path / "whole", "--partial")
    whole = json.loads((tmp_path / "whole" / "report.json").read_text())
    monkeypatch.setattr(image_audit, "_CHUNK", 4)
    calls = []

    def fails_after_ten(file):
        calls.append(file)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return examine_image(file)

    monkeypatch.setattr(image_audit, "examine_image", fails_after_ten)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out", "--partial")
    cache = tmp_path / "out" / "images-CUHK-PEDES.jsonl"
    assert len(cache.read_text().splitlines()) == 1 + 8  # the first line and two whole tasks
    cache.write_text(cache.read_text()[:-20])  # as if the last line had not reached the disk
    calls.clear()
    monkeypatch.setattr(image_audit, "examine_image", lambda file: calls.append(file) or examine_image(file))
    run(root, tmp_path / "out", "--partial")
    assert len(calls) == 18 - 7
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again == whole


def test_the_cache_of_another_folder_is_not_used(tmp_path):
    """Two bitmaps of the same name, size and time: only their folders tell them apart."""
    facts = []
    for seed, name in enumerate(("one", "two")):
        file = tmp_path / name / "a.bmp"
        write_picture(file, seed=seed)
        os.utime(file, ns=(1, 1))
        images = [("a.bmp", str(file))]
        facts.append(audit_images(images, str(tmp_path / name), str(tmp_path / "cache.jsonl"), 1, "images")["a.bmp"])
        assert facts[-1] == examine_image(str(file))
    assert facts[0].hash != facts[1].hash


def test_several_processes_find_what_one_finds(tmp_path, monkeypatch):
    images = []
    for number in range(9):
        write_picture(tmp_path / f"{number}.jpg", seed=number)
        images.append((f"{number}.jpg", str(tmp_path / f"{number}.jpg")))
    (tmp_path / "3.jpg").write_bytes(b"no image")
    alone = audit_images(images, str(tmp_path), str(tmp_path / "one.jsonl"), 1, "images")
    monkeypatch.setattr(image_audit, "_POOL_FROM", 1)
    monkeypatch.setattr(image_audit, "_CHUNK", 2)
    together = audit_images(images, str(tmp_path), str(tmp_path / "two.jsonl"), 2, "images")
    assert together == alone
    assert alone["3.jpg"].problem == "image-unreadable"


def test_a_sample_is_decoded_beyond_the_limit_and_the_report_says_so(tmp_path):
    for style in ("cuhk", "mals"):
        root = write_copy(style, tmp_path / style)
        _, report, _ = run(root, tmp_path / style / "out", "--partial", "--max_images", "5")
        assert report["images_examined"] == 5
        assert report["notes"] == [f"5 of the {report['images_named']} images named in the json were decoded"]


# reports


def test_the_page_shows_pictures_and_escapes_captions(tmp_path):
    root = write_copy("cuhk", tmp_path)
    Copy(root).edit(lambda rows: set_caption(rows, "<script>alert(1)</script> & a man"))
    _, _, page = run(root, tmp_path / "out", "--partial")
    assert page.count("<script") == 1 and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; a man" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert pictures
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as picture:
        assert picture.size == (48, 96)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_both_pictures_of_a_near_duplicate_are_shown(tmp_path):
    root = write_copy("rstp", tmp_path)
    near_duplicate(Copy(root))
    _, report, page = run(root, tmp_path / "out", "--partial")
    finding = next(finding for finding in report["findings"] if finding["code"] == "near-duplicate")
    assert finding["count"] == 1
    assert len(finding["examples"][0]["images"]) == 2
    assert page.count("data:image/jpeg") == 2


def test_pairs_are_counted_exactly_though_only_some_are_shown(tmp_path):
    root = write_copy("rstp", tmp_path)
    for path in root.rglob("*.jpg"):
        Image.new("RGB", (48, 96), "grey").save(path)
    _, report, _ = run(root, tmp_path / "out", "--partial")
    finding = next(finding for finding in report["findings"] if finding["code"] == "near-duplicate")
    assert finding["count"] == 10 * 4 + 10 * 4 + 4 * 4  # train and validation, train and test, validation and test
    assert len(finding["examples"]) == MAX_EXAMPLES


def test_an_unreadable_image_is_named_where_its_picture_would_be(tmp_path):
    root = write_copy("rstp", tmp_path)
    text_for_image(Copy(root))
    _, _, page = run(root, tmp_path / "out", "--partial")
    assert "cannot be shown" in page


def test_a_terminal_that_knows_only_ascii_does_not_stop_the_report(tmp_path, monkeypatch):
    root = write_copy("rstp", tmp_path)
    Copy(root).edit(lambda rows: set_caption(rows, "A man \u7a7f\u7740 a coat."))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(root, tmp_path / "out", "--partial")[0] == 0
    terminal.seek(0)
    assert "A man ?? a coat." in terminal.read()


def test_the_share_of_long_captions_is_of_all_captions(tmp_path):
    root = write_copy("icfg", tmp_path)
    Copy(root).edit(lambda rows: [set_caption(rows, "walks on " * 40 + str(n), n) for n in range(7)] and None)
    _, report, _ = run(root, tmp_path / "out", "--partial")
    assert report["captions"] == 14
    (lengths,) = report["lengths"]
    assert (lengths["limit"], lengths["over_limit"], lengths["longest"]) == (77, 7, 2 + 80 + 1)
    finding = next(finding for finding in report["findings"] if finding["code"] == "caption-long")
    assert finding["detail"].startswith("50 % of the captions")


def test_a_caption_that_one_person_has_twice_is_not_shared(tmp_path):
    root = write_copy("rstp", tmp_path)

    def same(rows):
        assert rows[0]["id"] == rows[1]["id"]
        rows[1]["captions"] = list(rows[0]["captions"])

    Copy(root).edit(same)
    assert "caption-shared" not in codes(run(root, tmp_path / "out", "--partial")[1])


def test_tokenizer_folders_give_exact_lengths_and_the_share_that_each_tower_cuts(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"[UNK]": 0, "[BOS]": 1, "[EOS]": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")  # one token a character
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(tmp_path / "tokenizer")
    fast.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"max_position_embeddings": 30}}')
    fast.model_max_length = 64
    fast.save_pretrained(tmp_path / "limited")
    root = write_copy("icfg", tmp_path)
    rows = json.loads((root / "ICFG-PEDES.json").read_text())
    lengths = [len(text) + 2 for row in rows for text in row["captions"]]
    folders = [str(tmp_path / name) for name in ("tokenizer", "model", "limited")]
    _, report, _ = run(root, tmp_path / "out", "--partial", "--tokenizer", *folders)
    for found, folder, limit in zip(report["lengths"], folders, (77, 30, 64), strict=True):
        assert found["longest"] == max(lengths) and found["limit"] == limit
        assert found["over_limit"] == sum(length > limit for length in lengths)
        assert found["method"] == f"counted by the tokenizer in {folder}"
    finding = next(finding for finding in report["findings"] if finding["code"] == "caption-long")
    assert finding["count"] == report["lengths"][1]["over_limit"] > 0 and "over 30 (counted" in finding["detail"]


# captions


@pytest.mark.parametrize(
    "caption",
    [
        "A woman (about 30) wears a t-shirt, size 12; her hair's tied back!",
        "The man's jacket is grey/blue and costs <5 euros & more.",
        "Caf\u00e9-coloured trousers, a na\u00efve pattern \u2013 and \u201cquotes\u201d.",
        "She returns from the left. His import shop is behind him.",
    ],
)
def test_an_ordinary_caption_has_no_problem(caption):
    assert caption_problems(caption) == []


@pytest.mark.parametrize(
    "caption",
    [
        "a man {color}",
        "<b>a man</b>",
        "if a == b",
        "a man &nbsp; walks",
        "see https://x.y",
        "a man\\n walks",
        "a man /n walks",
        "foo.bar(1)",
        'a = "b"',
    ],
)
def test_code_fragments_are_seen(caption):
    assert has_code(caption)


@pytest.mark.parametrize("caption", ["Description] a man", "a <color> coat", "a [colored top]", "a man <"])
def test_template_leaks_are_seen(caption):
    assert is_template_leak(caption)


@pytest.mark.parametrize(
    ("caption", "foreign"),
    [
        ("a \u7537 man", "\u7537"),
        ("\u043e\u043d", "\u043e\u043d"),
        ("red\uff0c blue\u3002", "\uff0c\u3002"),
        ("\u00e9\u00df\u2019", ""),
    ],
)
def test_foreign_characters_are_those_of_no_latin_script(caption, foreign):
    assert foreign_characters(caption) == foreign


def test_the_estimate_counts_words_digits_marks_and_both_ends():
    assert estimate_tokens("The man's t-shirt has number 23...") == 2 + len(
        ["The", "man", "'s", "t", "-", "shirt", "has", "number", "2", "3", "..."]
    )


# findings


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0 %"), (1, 1000, "<1 %"), (16, 100, "16 %"), (999, 1000, "99 %"), (5, 5, "100 %")],
)
def test_a_share_is_never_rounded_to_none_or_all(part, whole, text):
    assert share(part, whole) == text


def test_examples_are_bounded_and_counts_are_exact():
    findings = Findings()
    for number in range(1000):
        findings.add("image-missing", f"{number}.jpg")
    assert findings.get("image-missing").count == 1000
    assert len(findings.get("image-missing").examples) == MAX_EXAMPLES


def test_errors_come_before_warnings_and_notes():
    findings = Findings()
    for code in ("caption-long", "caption-empty", "image-missing", "json-missing"):
        findings.add(code, "here")
    assert [finding.severity for finding in findings] == ["error", "error", "warning", "note"]


# WebPerson itself.


@pytest.mark.parametrize("layout", list(made_up_webperson.WRITERS))
def test_a_webperson_is_recognised_and_examined(layout, tmp_path, capsys):
    root = made_up_webperson.WRITERS[layout](tmp_path / "mine", 6, 2)
    code, report, _ = run(root, tmp_path / "out")
    assert (code, report["name"], report["findings"]) == (0, "WebPerson", [])
    assert report["counts"] == {"train": {"ids": 0, "images": 6, "captions": 12}}
    assert report["images_examined"] == 6 and report["captions"] == 12
    assert run(root, tmp_path / "again", "--dataset", "webperson", "--max_images", "2")[1]["images_examined"] <= 2
    assert main([str(root), "--output_dir", str(tmp_path / "out"), "--image_root", str(root)]) == 2
    assert "a WebPerson has neither" in capsys.readouterr().err


def test_defects_of_a_webperson_are_named(tmp_path):
    root = made_up_webperson.write_images(tmp_path / "mine", 8)
    (root / "images" / "0001.jpg").unlink()
    (root / "images" / "0002.jpg").write_bytes(b"")
    Image.new("RGBA", (48, 96), (1, 2, 3, 9)).save(root / "images" / "0006.jpg", format="PNG")
    entries = json.loads((root / "100w_0.json").read_text())
    entries[3]["0003.jpg"]["caption1"] = None
    entries[4]["0004.jpg"]["caption2"] = "nan"
    entries[5] = {"../0005.jpg": entries[5]["0005.jpg"]}
    entries[7]["0007.jpg"]["caption1"] = entries[0]["0000.jpg"]["caption1"]
    (root / "100w_0.json").write_text(json.dumps(entries))
    code, report, _ = run(root, tmp_path / "out")
    found = {finding["code"]: finding["count"] for finding in report["findings"]}
    assert code == 1 and found == {
        "image-missing": 1,
        "image-empty": 1,
        "image-mode": 1,
        "caption-not-text": 1,
        "caption-empty": 1,
        "path-unsafe": 1,
        "caption-shared": 1,
    }


@pytest.mark.parametrize("caption", ["nan", " NaN ", "None", "null", "N/A", "", "-"])
def test_what_stands_for_a_missing_caption_says_nothing(caption):
    assert caption_problems(caption) == ["caption-empty"] and usable_captions([caption, "a man"]) == ["a man"]
    assert not caption_problems("A man called Nan in a red coat.")
