"""The card of a build says what its configuration and its counts say, and a release knows nothing of the machine."""

import getpass
import json
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from caption_server import GOOD, CaptionServer, serve
from made_up_persons import GOOD as BOX
from made_up_persons import picture, stub_crop_shard
from made_up_webperson import add_member

from dataset_webperson import build
from dataset_webperson.construction import run_card
from dataset_webperson.construction.persons.detectors import DetectorOptions, PoseOptions
from dataset_webperson.construction.persons.rule import RuleOptions
from dataset_webperson.construction.public_names import public_name, public_url
from dataset_webperson.construction.stages.crop import CropOptions
from dataset_webperson.construction.stages.quality import QualityOptions

HOME = "home_of_somebody"
URLS = ["https://site.org/0.jpg", "file:///{root}/1.jpg", "http://localhost/2.jpg", "http://192.168.0.7/3.jpg", None]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A build within a recognisable home directory: its root, its card, and its counts."""
    root = tmp_path_factory.mktemp("machine") / HOME
    (root / "source").mkdir(parents=True)
    for name in ("person_detector.onnx", "pose.onnx"):
        (root / name).write_bytes(name.encode())
    with tarfile.open(root / "source" / "00000.tar", "w") as tar:
        for number, url in enumerate([*URLS, *URLS]):
            facts = {"key": f"{root}/{number}", "url": url and url.format(root=root)}
            twin = number if number < 9 else 0
            add_member(tar, f"{number}.png", picture(BOX, seed=twin))
            add_member(tar, f"{number}.json", json.dumps(facts).encode())
    with serve(CaptionServer()) as server, pytest.MonkeyPatch.context() as patch:
        server.reply = lambda messages: f"{GOOD} It is number {len(server.requests)}."
        patch.setattr(build, "crop_shard", stub_crop_shard)
        captioner = {"base_url": server.url, "max_in_flight": 1}
        config = {
            "source": str(root / "source"),
            "work": str(root / "work"),
            "crop": {
                "detector": {"backend": "onnx", "model": str(root / "person_detector.onnx"), "min_score": 0.5},
                "pose": {"backend": "onnx", "model": str(root / "pose.onnx")},
                "rule": {"min_side": 30},
            },
            "dedup": {"max_distance": 0},
            "caption": {
                "captioner1": {**captioner, "model": str(root / "my-vlm")},
                "captioner2": {**captioner, "model": "org/other-vlm"},
            },
            "quality": {},
            "release": {"out": str(root / "out"), "contact": "privacy@example.org"},
        }
        (root / "config.yaml").write_text(yaml.safe_dump(config))
        assert build.main([str(root / "config.yaml")]) == 0
    return root, (root / "out" / "README.md").read_text(), json.loads((root / "work" / "counts.json").read_text())


def test_every_sentence_of_the_card_follows_from_a_value(released):
    root, card, counts = released
    for told in (
        "10 images in tars.",
        "Detector: `person_detector.onnx` (onnx, SHA-256 ",
        "boxes with a score over 0.5.",
        "at least 30 px",
        "one by `my-vlm` (temperature 0.7, seed 0) and one by `org/other-vlm`",
        "65 sentence templates that ship with the software",
        "differ in at most 0 of 64 bits, one was kept. Removed: 1 of the same bytes.",
        "`url` holds the web address of 2 of 9 images.",
        "Captions were not scored by a model.",
        "No opt-out list was given",
        "by `python -m dataset_webperson.build`",
    ):
        assert told in card, told
    for foreign in ("COYO", "YOLO11", "0.85", "90 px", "Qwen", "1,000 sentence", "no near-duplicates", "has not said"):
        assert foreign not in card, foreign
    assert counts["2_dedup"]["duplicate_bytes"] == 1 and counts["release"]["rows_out"] == 9


def test_the_card_says_what_was_done_about_second_persons():
    models = DetectorOptions("onnx", "a.onnx"), PoseOptions("onnx", "b.onnx")
    lenient, strict = (run_card._persons(CropOptions(*models, RuleOptions(max_overlap=most)), counts)
                       for most, counts in ((1.0, {"boxes": 9, "rows_out": 7, "crops_with_two_persons": 3}),
                                            (0.2, {"boxes": 9, "rows_out": 5, "second_person": 4})))  # fmt: skip
    assert "may lie in another" not in lenient and "for a second person" not in lenient
    assert "7 kept. In 3 of the kept ones another person's box covers 20% or more. Heads were" in lenient
    assert "No more than 20% of it may lie in another person's box." in strict
    assert "5 kept; left out: 4 for a second person. Heads were" in strict


def test_the_card_says_what_was_repaired_and_by_whom():
    counts = {"captions_scored": 9, "words_repaired": 1234, "captions_repaired": 5}
    counts |= {"captions_replaced": 0, "both_captions_marked": 0}
    repaired = run_card._checks(QualityOptions("org/ga-dms", "/home/me/my-reader.safetensors"), counts)
    assert "1,234 words of 5 captions" in repaired and "by the reader `my-reader.safetensors`" in repaired
    assert "replaced by others" not in run_card._checks(QualityOptions("org/ga-dms"), counts)


def test_the_card_says_whether_faces_were_blurred():
    options, counts = CropOptions(DetectorOptions("onnx", "a.onnx")), {"rows_out": 7, "heads_blurred": 6}
    blurred, plain = (run_card._persons(replace(options, blur_faces=choice), counts) for choice in (True, False))
    assert "Heads were made unrecognisable in 6 of them" in blurred and "unrecognisable" not in plain


def test_nothing_in_a_release_names_the_machine_that_made_it(released):
    root, _, _ = released
    own = {HOME, str(Path.home()), socket.gethostname(), "localhost", "192.168.0.7"}
    own |= {getpass.getuser()} - {"root"}  # a word of CSS, and of many a caption
    files = [path for name in ("out", "out-script") for path in (root / name).rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        texts = [path.read_bytes().decode("latin-1")]
        if path.suffix == ".parquet":  # what is compressed is read, column by column
            table = pq.read_table(path)
            # A short name of a host may stand in the bytes of a picture by chance.
            rows = ({**row, "image": (row.get("image") or {}).get("path")} for row in table.to_pylist())
            texts = [str(pq.read_schema(path).metadata), *map(str, rows)]
            data = {"url", "detector", "source_id", "captioner1"}
            assert set(table.column_names) >= {"data": data, "captions": {"caption1"}}.get(
                path.parent.name, {"reason"}
            )
        for word in own:
            assert not any(word in text for text in texts), (path, word)


def test_the_names_of_models_and_pictures_keep_what_is_public():
    snapshot = "/home/me/.cache/huggingface/hub/models--org--name/snapshots/0123"
    names = {"org/name": "org/name", snapshot: "org/name", "accounts/fire/models/a": "accounts/fire/models/a",
             "~/a.onnx": "a.onnx", "C:\\me\\a.onnx": "a.onnx", "../me/a.onnx": "a.onnx", "/me/a/": "a"}  # fmt: skip
    for given, public in names.items():
        assert public_name(given) == public
    for url in ("https://a.org/1.jpg", "http://8.8.8.8/1"):
        assert public_url(url) == url
    for url in (None, "", "/home/me/1.jpg", "file:///a.org/1", "http://gpu7/1", "http://[bad", "http://gpu.local/1"):
        assert public_url(url) is None
