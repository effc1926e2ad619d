"""Sources, detectors, the filter rule and crops: every image and every box ends in a row or in a count."""

import hashlib
import io
import json
import os
import sys
import tarfile
import types
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up_persons import GOOD, STUB_CROP, StubPose, picture, stub_crop_shard, write_source
from made_up_webperson import add_member
from PIL import Image, ImageColor
from transformers import (
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessorPil,
)

from dataset_webperson.construction.boxes_sheet import boxes_sheet
from dataset_webperson.construction.hosts import HostCounts
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.persons.detectors import DetectorOptions, PoseOptions, open_models
from dataset_webperson.construction.persons.rule import (
    RuleOptions,
    box_problem,
    covered_by_another,
    crop_area,
    pose_problem,
)
from dataset_webperson.construction.shards import read_rows, shard_counts
from dataset_webperson.construction.sources import find_shards, list_images, read_images
from dataset_webperson.construction.stages import crop
from dataset_webperson.construction.stages.crop import CropOptions, crop_shard
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.findings import DataError
from dataset_webperson.images import open_image


@pytest.mark.parametrize(
    "box, problem",
    [
        ((0, 0, 90, 180, 0.86), ""),
        ((0, 0, 90, 360, 0.86), ""),
        ((0, 0, 90, 180, 0.85), "box_score"),  # above, not at
        ((0, 0, 89.9, 180, 0.86), "box_side"),
        ((0, 0, 300, 89, 0.86), "box_side"),  # the shorter side, not the width
        ((0, 0, 100, 199, 0.86), "box_ratio"),
        ((0, 0, 90, 361, 0.86), "box_ratio"),
        ((5, 5, 5, 5, 0.99), "box_side"),
        ((0, 0, float("nan"), 200, 0.99), "box_side"),
    ],
)
def test_a_box_is_judged_by_the_thresholds_of_the_text(box, problem):
    assert box_problem(np.array(box, np.float64), 0.85, RuleOptions()) == problem


def test_a_pose_is_judged_by_its_visible_keypoints():
    def judged(*visible):
        pose = np.zeros((17, 3))
        pose[list(visible), 2] = 0.3
        return pose_problem(pose, 0.3, RuleOptions())

    assert judged(0, 1, 5, 6, 7, 8, 9, 11) == ""
    assert judged(0, 1, 5, 6, 7, 8, 11) == "keypoints_few"
    assert judged(0, 1, 5, 6, 7, 8, 9, 10, 13) == "hips_hidden"
    assert judged(0, 5, 6, 7, 8, 9, 10, 12) == "head_hidden"


def test_the_margin_is_a_share_of_the_box_and_ends_at_the_picture():
    assert crop_area(np.array([100, 100, 200, 300, 1]), 0.05, 400, 400) == (95, 90, 205, 310)
    assert crop_area(np.array([1, 1, 399, 399.5, 1]), 0.1, 400, 400) == (0, 0, 400, 400)
    assert crop_area(np.array([10.6, 10.6, 20.2, 20.2, 1]), 0, 400, 400) == (10, 10, 21, 21)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def test_every_image_and_every_box_is_a_row_or_counted_by_reason(tmp_path):
    boxes = [
        GOOD,
        (150, 20, 250, 270, 0.5, "seen"),
        (260, 20, 300, 120, 0.9, "seen"),
        (310, 20, 410, 120, 0.9, "seen"),
    ]
    hidden = [(10 + 110 * place, 20, 110 + 110 * place, 270, 0.9, pose) for place, pose in enumerate(
        ("keypoints_few", "hips_hidden", "head_hidden"))]  # fmt: skip
    members = [
        ("a.png", picture(*boxes)),
        ("b.png", picture(*hidden)),
        ("c.png", picture()),
        ("d.png", b"no image"),
        ("e.png", picture(GOOD)[:500]),
        ("f.txt", b"words without an image"),
    ]
    source = write_tar(tmp_path / "00000.tar", members)
    failed = {"key": ["a", "x", "y"], "url": ["u", "v", "w"], "status": ["success", "failed_to_resize", "failed"]}
    pq.write_table(pa.table(failed), tmp_path / "00000.parquet")
    target = str(tmp_path / "out" / "00000.parquet")
    counts = stub_crop_shard(source, target, STUB_CROP)
    expected = {
        "rows_in": 8, "not_downloaded": 2, "image_missing": 1, "image_unreadable": 2, "images_without_person": 1,
        "boxes": 7, "box_score": 1, "box_side": 1, "box_ratio": 1, "keypoints_few": 1, "hips_hidden": 1,
        "head_hidden": 1, "rows_out": 1, "heads_blurred": 1,
    }  # fmt: skip
    assert counts == shard_counts(target) == expected
    (row,) = read_rows(target)
    assert row["image_path"] == row["image"]["path"] == "00000_000000_0.jpg" and row["source_id"] == "a"
    assert row["box"] == [40, 20, 140, 270] and row["box_score"] == pytest.approx(0.99)
    assert row["source_sha256"] == hashlib.sha256(members[0][1]).hexdigest()
    assert row["image_sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.format == "JPEG" and image.size == (110, 276)  # 5 % on each side, cut at the upper edge
    # Keypoints are in pixels of the source image: the stub's first is 1 right of and 2 below the crop's corner.
    assert row["keypoints"][0][:2] == [36, 9] and len(row["keypoints"]) == 17


def test_opted_out_images_are_not_looked_at(tmp_path):
    (source,) = write_source(tmp_path / "source", shards=1, images=5, copies=0)
    with tarfile.open(source) as tar:
        digest = hashlib.sha256(tar.extractfile("000000003.png").read()).hexdigest()
    (tmp_path / "list.txt").write_text(
        f"# asked\nurl: http://www.site0.org/0.jpg\ndomain:SITE1.org\nsha256:{digest}\n"
    )
    options = CropOptions(STUB_CROP.detector, STUB_CROP.pose, opt_out=str(tmp_path / "list.txt"))
    counts = stub_crop_shard(source, str(tmp_path / "00000.parquet"), options)
    assert {name: count for name, count in counts.items() if name.startswith("opted")} == {
        "opted_out_url": 1,
        "opted_out_domain": 1,
        "opted_out_sha256": 1,
    }
    assert counts["rows_out"] == 4


def test_an_opt_out_list_takes_sites_with_their_sub_domains_and_refuses_what_it_does_not_know(tmp_path):
    listed = OptOut(urls=["https://www.a.org/x/"], domains=["b.org"], sha256s=["AB" * 32])
    assert listed.excludes("http://A.org/x#part") == "url"
    assert listed.excludes("https://img.b.org/1") == listed.excludes("b.org/1") == "domain"
    assert listed.excludes("https://notb.org/1") is None and listed.excludes("http://a.org/X") is None
    assert listed.excludes(None, [None, "ab" * 32]) == "sha256" and listed.excludes("http://[bad") is None
    for line in ("site:a.org", "a.org", "sha256:12", "url:", "phash:12"):
        (tmp_path / "list.txt").write_text(f"\n{line}\n")
        with pytest.raises(DataError, match="list.txt line 2.*write `url:`"):
            OptOut.from_file(tmp_path / "list.txt")


def test_tars_parquets_and_folders_give_the_same_images(tmp_path):
    pictures = {f"{number:09d}": picture(GOOD, seed=number) for number in range(4)}
    urls = {key: f"https://a.org/{key}" for key in pictures}
    tar = [
        part
        for key, data in pictures.items()
        for part in ((f"{key}.png", data), (f"{key}.json", json.dumps({"key": key, "url": urls[key]}).encode()))
    ]
    for name in ("tars", "parquets", "files/00000"):
        (tmp_path / name).mkdir(parents=True)
    write_tar(tmp_path / "tars" / "00000.tar", tar)
    rows = [{"key": key, "url": urls[key], "jpg": data} for key, data in pictures.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquets" / "00000.parquet")
    for name, data in tar:
        (tmp_path / "files" / "00000" / name).write_bytes(data)
    (tmp_path / "files" / "00000" / "000000002.json").write_text("not json")
    for kind in ("tars", "parquets", "files"):
        shards, unfinished = find_shards(str(tmp_path / kind), str(tmp_path / "lists"))
        images = [image for shard in shards for image in read_images(shard)]
        assert [image.data for image in images] == list(pictures.values()) and not unfinished
        prefix = "00000_" if kind == "files" else ""
        assert [image.source_id for image in images] == [prefix + key for key in pictures]
        known = [url for number, url in enumerate(urls.values()) if kind != "files" or number != 2]
        assert [image.url for image in images if image.url] == known


def test_files_that_share_a_name_keep_their_persons_apart(tmp_path):
    """`b.jpg` goes as a double of `a.jpg`; `b.png`, `x/y.jpg`, `x_y.jpg` and the same name twice in tars stay."""
    files, tars = tmp_path / "files", tmp_path / "tars"
    (files / "x").mkdir(parents=True)
    tars.mkdir()
    named = {"a.jpg": 1, "b.jpg": 1, "b.png": 2, "x/y.jpg": 3, "x_y.jpg": 4}
    for name, seed in named.items():
        (files / name).write_bytes(picture(GOOD, seed=seed))
    for number in (0, 1):
        write_tar(tars / f"{number:05d}.tar", [("a.jpg", picture(GOOD, seed=5 + number))])
    for folder, people, gone in ((files, 4, 1), (tars, 2, 0)):
        shards, _ = find_shards(str(folder), str(tmp_path / "lists"))
        crops = [str(tmp_path / f"crop_{folder.name}" / f"{number:05d}.parquet") for number in range(len(shards))]
        for shard, target in zip(shards, crops, strict=True):
            stub_crop_shard(shard, target, STUB_CROP)
        options = DedupOptions(max_distance=0, plan=str(tmp_path / f"plan_{folder.name}"))
        find_duplicates(crops, options)
        rows = []
        for number, source in enumerate(crops):
            target = str(tmp_path / f"dedup_{folder.name}" / f"{number:05d}.parquet")
            assert dedup_shard(source, target, options).get("duplicate_bytes", 0) == gone
            rows += read_rows(target)
        assert len({row["source_sha256"] for row in rows}) == len({row["image_path"] for row in rows}) == people


def test_shards_that_are_still_being_downloaded_are_left_out_and_named(tmp_path):
    paths = write_source(tmp_path / "source", shards=2, images=1, copies=0)
    (tmp_path / "source" / "00001_stats.json").unlink()
    assert find_shards(str(tmp_path / "source"), "") == (paths[:1], paths[1:])


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tars, no parquet with images and no image files"):
        find_shards(str(tmp_path / "empty"), str(tmp_path / "lists"))


def test_a_cut_tar_is_one_error_and_leaves_no_shard(tmp_path):
    (source,) = write_source(tmp_path / "source", shards=1)
    whole = open(source, "rb").read()
    open(source, "wb").write(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="00000.tar: broken after file"):
        stub_crop_shard(source, str(tmp_path / "out" / "00000.parquet"), STUB_CROP)
    assert list((tmp_path / "out").iterdir()) == []


def test_batches_do_not_change_what_is_cropped(tmp_path):
    (source,) = write_source(tmp_path / "source", shards=1, images=7)
    for size in (1, 4, 100):
        options = CropOptions(STUB_CROP.detector, STUB_CROP.pose, batch_size=size)
        stub_crop_shard(source, str(tmp_path / f"{size}.parquet"), options)
    contents = {(tmp_path / f"{size}.parquet").read_bytes() for size in (1, 4, 100)}
    assert len(contents) == 1


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    torch.manual_seed(0)
    stages = ["stage2", "stage3", "stage4"]
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=stages
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8] * 3,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16] * 3,
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_queries=20,
        num_denoising=0,
        id2label={0: "dog", 1: "person"},
        label2id={"dog": 0, "person": 1},
    )
    folder = tmp_path_factory.mktemp("models")
    RTDetrV2ForObjectDetection(config).save_pretrained(folder / "detector")
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "detector")
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, out_features=["stage1"]
    )
    pose = VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    VitPoseForPoseEstimation(pose).save_pretrained(folder / "pose")
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder / "pose")
    return DetectorOptions(model=str(folder / "detector")), PoseOptions(model=str(folder / "pose"))


def test_transformers_models_give_boxes_of_persons_and_poses_in_pixels(tiny_models):
    detector, pose = open_models(*tiny_models)
    images = [Image.open(io.BytesIO(picture(GOOD, seed=seed, size=(400, 100 * seed + 200)))) for seed in range(3)]
    together = detector.persons(images)
    assert sum(map(len, together)) > 0
    for image, boxes in zip(images, together, strict=True):
        assert boxes.shape[1] == 5 and (np.diff(boxes[:, 4]) <= 0).all()
        # Boxes of one image do not depend on the others of its batch.
        np.testing.assert_allclose(detector.persons([image])[0], boxes, rtol=1e-3, atol=0.5)
    with torch.no_grad():
        outputs = detector.model(**detector.processor(images=images[:1], return_tensors="pt"))
    # By hand: of the 20 best scores of all boxes and classes, those of the second class, "person".
    scores = outputs.logits[0].sigmoid().flatten()
    persons = [place for place in scores.argsort(descending=True)[:20].tolist() if place % 2 and scores[place] >= 0.1]
    np.testing.assert_allclose(together[0][:, 4], scores[persons], rtol=1e-3)
    poses = pose.keypoints(images)
    for image, found in zip(images, poses, strict=True):
        assert found.shape == (17, 3) and found.dtype == np.float32 and found[:, 2].max() > 0
        assert (found[:, 0] > -image.width).all() and (found[:, 0] < 2 * image.width).all()
        np.testing.assert_allclose(pose.keypoints([image])[0], found, rtol=1e-3, atol=0.5)


def test_the_default_backend_crops_whole_shards(tiny_models, tmp_path):
    (source,) = write_source(tmp_path / "source", shards=1, images=4)
    detector = DetectorOptions(model=tiny_models[0].model, min_score=0.0)
    rule = RuleOptions(min_side=1, min_ratio=0.01, max_ratio=100, min_keypoints=0, min_hips=0, min_head=0)
    counts = crop_shard(source, str(tmp_path / "00000.parquet"), CropOptions(detector, tiny_models[1], rule))
    assert counts["rows_out"] > 0 and counts["rows_in"] == 5
    assert counts["boxes"] == counts["rows_out"] + counts.get("box_side", 0) + counts.get("box_ratio", 0)


def test_a_missing_package_or_model_is_one_line_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(DataError, match="pip install ultralytics .AGPL-3.0"):
        open_models(DetectorOptions("ultralytics", "yolo11n.pt"), PoseOptions())
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match="broken.onnx: cannot be opened by onnx"):
        open_models(DetectorOptions("onnx", str(tmp_path / "broken.onnx")), PoseOptions())
    with pytest.raises(ValueError, match="backend is one of transformers, onnx, ultralytics"):
        DetectorOptions("tensorflow")


def test_yolo_results_become_boxes_and_poses(monkeypatch):
    """Against stand-ins of the package's results: tensors `boxes.xyxy`, `boxes.conf`, `keypoints.data`."""

    class Boxes:
        xyxy, conf = torch.tensor([[1.0, 2, 30, 40], [5, 6, 70, 80]]), torch.tensor([0.3, 0.9])

        def __len__(self):
            return 2

    class Model:
        def __init__(self, path):
            self.path = path

        def predict(self, images, **options):
            keypoints = types.SimpleNamespace(data=torch.arange(51.0).reshape(1, 17, 3))
            nobody = types.SimpleNamespace(boxes=[], keypoints=types.SimpleNamespace(data=torch.empty(0, 17, 3)))
            seen = types.SimpleNamespace(boxes=Boxes(), keypoints=keypoints)
            return [seen, nobody][: len(images)]

    monkeypatch.setitem(sys.modules, "ultralytics", types.SimpleNamespace(YOLO=Model))
    monkeypatch.delitem(sys.modules, "dataset_webperson.construction.persons.ultralytics_models", raising=False)
    detector, pose = open_models(DetectorOptions("ultralytics", "a.pt"), PoseOptions("ultralytics", "b.pt"))
    (boxes,) = detector.persons([None])
    np.testing.assert_allclose(boxes, [[5, 6, 70, 80, 0.9], [1, 2, 30, 40, 0.3]])
    first, second = pose.keypoints([None, None])
    assert first[1].tolist() == [3, 4, 5] and not second.any() and second.shape == (17, 3)


def test_the_stand_in_pose_fails_the_part_of_the_rule_it_is_told_to(tmp_path):
    for name in ("seen", "keypoints_few", "hips_hidden", "head_hidden"):
        (tmp_path / "a.png").write_bytes(picture((*GOOD[:5], name)))
        (found,) = StubPose().keypoints([open_image(tmp_path / "a.png").crop(GOOD[:4])])
        assert pose_problem(found, 0.3, RuleOptions()) == ("" if name == "seen" else name)


class WidePerson:
    """A person in every image, from a tenth to four tenths of its width and the middle eight tenths of its height."""

    def persons(self, images):
        part = np.array([0.1, 0.1, 0.4, 0.9])
        return [np.array([[*(part * [*image.size, *image.size]), 0.99]], np.float32) for image in images]

    def keypoints(self, crops):
        middle = [[crop.width / 2, crop.height / 2, 0.9] for crop in crops]
        return [np.tile(np.array(point, np.float32), (17, 1)) for point in middle]


def test_a_huge_jpeg_is_decoded_smaller_and_its_boxes_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(crop, "open_models", lambda detector, pose: (WidePerson(), WidePerson()))
    monkeypatch.setattr(crop, "PIXELS_OF_IMAGE", 300_000)
    (tmp_path / "images").mkdir()
    gradient = Image.linear_gradient("L").resize((1200, 900)).convert("RGB")
    gradient.save(tmp_path / "images" / "large.jpg")
    gradient.resize((600, 450)).save(tmp_path / "images" / "small.jpg")
    (source,) = list_images(str(tmp_path / "images"), str(tmp_path / "lists"))
    crop_shard(source, str(tmp_path / "out.parquet"), STUB_CROP)
    large, small = read_rows(str(tmp_path / "out.parquet"))
    assert large["box"] == pytest.approx([120, 90, 480, 810]) and small["box"] == pytest.approx([60, 45, 240, 405])
    assert large["keypoints"][0][:2] == pytest.approx([300, 450], abs=2)
    one, other = (Image.open(io.BytesIO(row["image"]["bytes"])) for row in (large, small))
    assert one.size == other.size
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() < 2


def test_batches_end_at_their_number_of_pixels_and_lose_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(crop, "PIXELS_OF_BATCH", 2 * 420 * 300 - 1)
    (source,) = write_source(tmp_path / "source", shards=1, images=7, copies=0)
    images, sizes = crop._named(source), []
    options = replace(STUB_CROP, batch_size=5)
    while (batch := crop._decode_batch(images, options, OptOut(), HostCounts())) is not None:
        sizes.append((len(batch[0]), batch[1]["rows_in"]))
    assert sizes == [(2, 2), (2, 2), (2, 2), (1, 2)]


@pytest.mark.parametrize("seed", range(3))
def test_the_share_that_another_person_covers_is_that_of_counted_pixels(seed):
    random = np.random.default_rng(seed)
    boxes = np.column_stack([random.integers(0, 30, (6, 2)), random.integers(31, 60, (6, 2)), random.random(6)])
    boxes[1] = [*(boxes[0, :4] + [0, 0, 1, 0]), 0.9]  # the same person once more
    pixels = [np.zeros((60, 60), bool) for _ in boxes]
    for mask, (x0, y0, x1, y1, _) in zip(pixels, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    shares = [
        (pixels[0] & other).sum() / pixels[0].sum()
        for other, box in zip(pixels[1:], boxes[1:], strict=True)
        if box[4] > 0.25 and (pixels[0] & other).sum() <= 0.7 * (pixels[0] | other).sum()
    ]
    assert covered_by_another(boxes[0], boxes[1:], 0.5) == pytest.approx(max(shares, default=0))
    assert covered_by_another(boxes[0], boxes[:0], 0.5) == 0


def test_two_persons_in_a_crop_are_counted_and_rejected_where_the_rule_says_so(tmp_path):
    beside = (100, 0, 200, 290, 0.97, "seen")  # behind the first one; each covers over a third of the other
    (source,) = write_source(tmp_path / "source", shards=1, images=1, copies=0)
    with tarfile.open(source, "w") as tar:
        add_member(tar, "a.png", picture(beside, GOOD))
    counts = stub_crop_shard(source, str(tmp_path / "a.parquet"), STUB_CROP)
    assert counts["crops_with_two_persons"] == counts["rows_out"] > 0
    strict = replace(STUB_CROP, rule=RuleOptions(max_overlap=0.1))
    counts = stub_crop_shard(source, str(tmp_path / "b" / "a.parquet"), strict)
    assert counts["second_person"] > 0 and counts["rows_out"] == 0
    rejected = list(read_rows(str(tmp_path / "b" / "rejected_boxes" / "a.parquet")))
    assert {row["reason"] for row in rejected} == {"second_person"} and rejected[0]["image"] == "00000_000000"


def test_sheets_show_kept_and_rejected_persons_page_by_page_whatever_lies_beside_the_images(tmp_path):
    folder, work = tmp_path / "images", tmp_path / "work"
    folder.mkdir()
    small = (250, 20, 280, 90, 0.95, "seen")
    for number in range(22):
        data = picture(GOOD, small, seed=number)
        (folder / f"{number:02d}.png").write_bytes(data)
    (folder / "00.json").write_text("{}")
    (folder / "00.heic").write_bytes(b"not read")
    shards = []
    for source in list_images(str(folder), str(work / "0_lists")):
        shards.append(str(work / "1_crop" / os.path.basename(source).replace(".json", ".parquet")))
        stub_crop_shard(source, shards[-1], STUB_CROP)
    pages = boxes_sheet(str(folder), shards, str(tmp_path / "sheet.png"))
    assert [os.path.basename(page) for page in pages] == ["sheet.png", "sheet-2.png"]
    first, second = (np.asarray(Image.open(page).convert("RGB")).reshape(-1, 3) for page in pages)
    assert len(first) < 1_280 * 1_800 and len(second) < len(first)
    for colour in ("lime", "orange"):  # kept, and too small: as boxes, not only in the legend
        assert (first == ImageColor.getrgb(colour)).all(1).sum() > 1_000
    assert boxes_sheet(str(folder), shards, str(tmp_path / "one.png"), max_pages=1) == [str(tmp_path / "one.png")]
    (tar,) = write_source(tmp_path / "tars", shards=1, images=2, copies=0)
    stub_crop_shard(tar, str(tmp_path / "t" / "00000.parquet"), STUB_CROP)
    assert (
        len(boxes_sheet(str(tmp_path / "tars"), [str(tmp_path / "t" / "00000.parquet")], str(tmp_path / "t.png"))) == 1
    )
    with pytest.raises(DataError, match="not the images of .*00000.parquet; give the folder"):
        boxes_sheet(str(tmp_path), [str(tmp_path / "t" / "00000.parquet")], str(tmp_path / "t.png"))
