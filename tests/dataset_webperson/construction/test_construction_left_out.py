"""Who is left out: how rejected persons are seen, unsafe pictures, opt-out by looks, pictures in the report."""

import io
import os
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml
from caption_server import GOOD as CAPTION
from caption_server import CaptionServer, serve
from made_up_persons import GOOD, STUB_CROP, picture, stub_crop_shard, write_source
from made_up_webperson import add_member
from PIL import Image
from test_construction_build import write_config
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from dataset_webperson import build
from dataset_webperson.construction import opt_out, shards
from dataset_webperson.construction.opt_out import NEAR, OptOut
from dataset_webperson.construction.persons.nsfw import NsfwOptions, open_classifier
from dataset_webperson.construction.persons.views import count_traits, traits
from dataset_webperson.construction.quality_report import seen_as, summarize
from dataset_webperson.construction.shards import read_rows, recheck, shard_counts
from dataset_webperson.findings import DataError
from dataset_webperson.near_duplicates import perceptual_hash

# COCO's order; someone who stands and looks at the camera, so that the left shoulder lies to the right.
STANDING = [(50, 10), (53, 8), (47, 8), (56, 10), (44, 10), (65, 30), (35, 30), (70, 55), (30, 55), (72, 75), (28, 75)]
STANDING += [(60, 80), (40, 80), (60, 125), (40, 125), (60, 170), (40, 170)]


def pose(hidden=(), **moved):
    keypoints = np.array([(x, y, 0.9) for x, y in STANDING])
    for name, place in moved.items():
        keypoints[int(name[1:]), :2] = place
    keypoints[list(hidden), 2] = 0.1
    return keypoints


def slow_traits(keypoints, least):
    """Twin of `traits`, from its description."""
    seen = {number: (x, y) for number, (x, y, score) in enumerate(keypoints) if score >= least}
    found = {"occluded": sum(number not in seen for number in range(5, 17)) >= 3}
    shoulders = [seen[n][1] for n in (5, 6) if n in seen]
    hips = [seen[n][1] for n in (11, 12) if n in seen]
    if not shoulders or not hips:
        return found
    torso = sum(hips) / len(hips) - sum(shoulders) / len(shoulders)
    if torso > 0 and len(shoulders) == 2:
        found["back"] = seen[6][0] - seen[5][0] >= torso / 4
    thighs = [seen[hip + 2][1] - seen[hip][1] for hip in (11, 12) if hip in seen and hip + 2 in seen]
    if torso > 0 and thighs:
        found["seated"] = sum(thighs) / len(thighs) < torso / 2
    return found


def test_a_pose_tells_back_views_seated_and_hidden_persons():
    swapped = {f"k{n}": STANDING[n + 1 if n % 2 else n - 1] for n in (5, 6, 11, 12)}
    for keypoints, expected in (
        (pose(), {"back": False, "seated": False, "occluded": False}),
        (pose(**swapped), {"back": True, "seated": False, "occluded": False}),
        (pose(k5=(50, 30), k6=(52, 30)), {"back": False, "seated": False, "occluded": False}),  # from the side
        (pose(k13=(75, 90), k14=(25, 90)), {"back": False, "seated": True, "occluded": False}),
        (pose(hidden=(13, 14, 15, 16)), {"back": False, "occluded": True}),
        (pose(hidden=(6, 11)), {"seated": False, "occluded": False}),
        (pose(hidden=(11, 12)), {"occluded": False}),
        (pose(k11=(60, 20), k12=(40, 20)), {"occluded": False}),  # upside down
    ):
        assert traits(keypoints, 0.3) == expected == slow_traits(keypoints, 0.3)
    random = np.random.default_rng(0)
    found = Counter()
    for _ in range(200):
        keypoints = random.random((17, 3)) * [100, 100, 1]
        assert traits(keypoints, 0.3) == slow_traits(keypoints, 0.3)
        count_traits(found, "kept", traits(keypoints, 0.3))
    (row,) = seen_as(found)
    assert row.fate == "kept" and row.persons == row.shares["occluded"][1] == 200
    assert all(0 < has < told <= 200 for has, told in row.shares.values())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a classifier of random weights."""
    folder = str(tmp_path_factory.mktemp("nsfw"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    labels = {"id2label": {0: "normal", 1: "NSFW"}, "label2id": {"normal": 0, "NSFW": 1}}
    ViTForImageClassification(ViTConfig(**sizes, **labels, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_pictures_that_a_classifier_takes_for_unsafe_are_named_and_not_looked_at(classifier, tmp_path):
    (source,) = write_source(tmp_path / "source", shards=1, images=5, copies=0)
    with tarfile.open(source) as tar:
        data = [tar.extractfile(name).read() for name in sorted(tar.getnames()) if name.endswith(".png")]
    images = [Image.open(io.BytesIO(one)).convert("RGB") for one in data]
    scores = [open_classifier(NsfwOptions(classifier, batch_size=1)).scores([image])[0] for image in images]
    assert open_classifier(NsfwOptions(classifier, batch_size=2)).scores(images) == pytest.approx(scores, abs=1e-6)
    limit = sorted(scores)[2]
    options = replace(STUB_CROP, nsfw=NsfwOptions(classifier, max_score=limit + 1e-6))
    counts = stub_crop_shard(source, str(tmp_path / "1_crop" / "00000.parquet"), options)
    unsafe = [f"0000000{place:02d}.png" for place, score in enumerate(scores) if score > limit + 1e-6]
    assert counts["image_nsfw"] == len(unsafe) == 2 and counts["rows_out"] == 6 and counts["rows_in"] == 6
    rejected = list(read_rows(str(tmp_path / "1_crop" / "rejected" / "00000.parquet")))
    assert [row["name"] for row in rejected] == unsafe and {row["reason"] for row in rejected} == {"image_nsfw"}
    with pytest.raises(DataError, match="no label 'porn', but normal, nsfw; set `crop.nsfw.label`"):
        open_classifier(NsfwOptions(classifier, label="porn"))
    with pytest.raises(ValueError, match="max_score is in 0..1"):
        NsfwOptions(classifier, max_score=2)


def test_an_opt_out_list_knows_pictures_by_their_looks(tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(0)
    listed = [int(value) for value in random.integers(1 << 63, size=40, dtype=np.uint64)]
    found = OptOut(phashes=[f"{value:016X}" for value in listed])
    for _ in range(300):
        value = listed[random.integers(40)] if random.random() < 0.8 else int(random.integers(1 << 63))
        for bit in random.choice(64, random.integers(0, 9), replace=False).tolist():
            value ^= 1 << bit
        near = min((value ^ other).bit_count() for other in listed) <= NEAR
        assert (found.excludes(None, phashes=[None, f"{value:016x}"]) == "phash") == near
    assert OptOut().excludes("a.org", ["ab"], ["ff" * 8]) is None and found.digest != OptOut().digest
    # The command writes the lines for a picture; they take it also in another size and format.
    (source,) = write_source(tmp_path / "source", shards=1, images=3, copies=0)
    (tmp_path / "mine.png").write_bytes(picture(GOOD, (201, 30, 311, 270, 0.97, "seen"), seed=1))
    Image.open(tmp_path / "mine.png").resize((630, 450)).save(tmp_path / "larger.jpg")
    assert opt_out.main([str(tmp_path / "larger.jpg")]) == 0
    (tmp_path / "list.txt").write_text(capsys.readouterr().out)
    options = replace(STUB_CROP, opt_out=str(tmp_path / "list.txt"))
    counts = stub_crop_shard(source, str(tmp_path / "a.parquet"), options)
    assert counts["opted_out_phash"] == 1 and counts["rows_out"] == 4
    # Rows that are there already go by the hash of their image on the web, or by their own.
    for column in ("source_phash", "phash"):
        target = tmp_path / column / "a.parquet"
        stub_crop_shard(source, str(target), STUB_CROP)
        rows = list(read_rows(str(target)))
        own = OptOut(phashes=[rows[2][column]])
        gone = {n for n, row in enumerate(rows) if own.excludes(None, phashes=[row["source_phash"], row["phash"]])}
        recheck([str(target)], str(target.parent), own)
        assert 2 in gone and list(read_rows(str(target))) == [row for n, row in enumerate(rows) if n not in gone]
        # Killed before its marks are removed, it leaves nothing that looks like a shard and is none.
        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            killed.setattr(shards, "_write_checked", stop)
            killed.setattr(shards.shutil, "rmtree", lambda *arguments, **options: None)
            recheck([str(target)], str(target.parent), OptOut(phashes=["ff" * 8]))
        assert [name.endswith(".parquet") for name in os.listdir(target.parent / "checked")] == [False]
    assert (
        rows[0]["source_phash"] == f"{perceptual_hash(Image.open(io.BytesIO(first_of(source))).convert('RGB')):016x}"
    )


def stop(*arguments):
    raise KeyboardInterrupt


def first_of(source):
    with tarfile.open(source) as tar:
        return tar.extractfile(next(name for name in tar.getnames() if name.endswith(".png"))).read()


def test_the_report_shows_pictures_of_what_each_rule_left_out_and_who_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)
    (tmp_path / "source").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "source" / f"{shard:05d}.tar", "w") as tar:
            for number in range(4):
                small = (300, 20, 330, 90, 0.95, "seen")
                hidden = (180, 20, 285, 290, 0.97, "hips_hidden")
                seed = number if number < 3 else 0  # the fourth is the first once more
                add_member(tar, f"{shard}{number}.png", picture(GOOD, small, hidden, seed=10 * shard + seed))
                add_member(tar, f"{shard}{number}.json", f'{{"url": "https://s{number}.org/{shard}"}}'.encode())
    work = tmp_path / "work"
    with serve(CaptionServer()) as server:
        server.reply = lambda messages: CAPTION if len(str(messages)) % 3 else "bad"
        assert build.main([write_config(tmp_path, server.url)]) == 0
        summary = summarize(str(work))
        left_out = {"box_side", "hips_hidden", "duplicate_bytes"}
        marked = summary.stages["quality"]["both_captions_marked"]
        assert summary.rejects.keys() == left_out | ({"both_captions_marked"} if marked else set())
        assert [len(summary.rejects[rule]) for rule in ("box_side", "hips_hidden")] == [4, 4]  # two of each shard
        page = (work / "report.html").read_text()
        for words in (
            "What each rule left out",
            ">hips hidden</h3>",
            "How persons are seen",
            "duplicate bytes",
            "s3.org",
        ):
            assert words in page
        assert summary.seen["hips_hidden/persons"] == 8 and summary.seen["kept/persons"] == 8
        assert "hips_hidden/back_told" not in summary.seen and summary.seen["kept/occluded"] == 0
        boxes = list(read_rows(str(work / "1_crop" / "rejected_boxes" / "00000.parquet")))
        assert Counter(row["reason"] for row in boxes if row["picture"]) == {"box_side": 2, "hips_hidden": 2}
        assert Image.open(io.BytesIO(summary.rejects["box_side"][0].data)).height > 70
        # Who opts out is gone from there too.
        (tmp_path / "list.txt").write_text("domain:s1.org\ndomain:s2.org\n")
        assert build.main([write_config(tmp_path, server.url, opt_out=str(tmp_path / "list.txt"))]) == 0
    left = list(read_rows(str(work / "1_crop" / "rejected_boxes" / "00000.parquet")))
    assert left == [row for row in boxes if "s1.org" not in row["url"] and "s2.org" not in row["url"]]
    counts = shard_counts(str(work / "1_crop" / "rejected_boxes" / "00000.parquet"))
    assert counts["opted_out_domain"] == 4 and counts["hips_hidden/persons"] == 4


@pytest.mark.parametrize("changes", [{}, {"label": "porn"}])
def test_the_classifier_is_opened_before_the_first_stage(tmp_path, classifier, capsys, changes):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(picture(GOOD))
    config = write_config(tmp_path, "http://127.0.0.1:9/v1", caption=None, quality=None, release=None)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values["crop"]["nsfw"] = {"model": classifier if changes else str(tmp_path / "nowhere"), **changes}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert build.main([config]) == 2
    told = "set `crop.nsfw.label`" if changes else "nowhere: `crop.nsfw.model` cannot be opened"
    assert told in capsys.readouterr().err and not (tmp_path / "work" / "1_crop").exists()
