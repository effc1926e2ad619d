"""The paper's rule on real photographs with real weights, through ONNX files; skipped until they are prepared."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_webperson.construction.persons.detectors import DetectorOptions, PoseOptions, open_models
from dataset_webperson.construction.persons.rule import RuleOptions, pose_problem
from dataset_webperson.construction.shards import read_rows, run_stage
from dataset_webperson.construction.sources import find_shards
from dataset_webperson.construction.stages.crop import CropOptions, crop_shard

FOLDER = Path(os.environ.get("GADMS_PHOTOS", Path.home() / ".cache" / "gadms" / "photos"))
READY = all((FOLDER / name).exists() for name in ("person_detector.onnx", "pose.onnx", "photos"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not READY, reason=f"no models in {FOLDER}: run `make photo-models`, or set GADMS_PHOTOS"),
]


def options(min_side, min_score=0.5):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    detector = DetectorOptions("onnx", str(FOLDER / "person_detector.onnx"), min_score=min_score)
    return CropOptions(detector, PoseOptions("onnx", str(FOLDER / "pose.onnx"), min_score=0.2), RuleOptions(min_side))


def cropped(tmp_path, chosen):
    shards, _ = find_shards(str(FOLDER / "photos"), str(tmp_path / "0_lists"))
    counts = run_stage(crop_shard, shards, str(tmp_path / "1_crop"), chosen)
    return [row for shard in sorted((tmp_path / "1_crop").glob("*.parquet")) for row in read_rows(str(shard))], counts


def overlap(one, other):
    """Intersection over union."""
    x0, y0 = np.maximum(one[:2], other[:2])
    x1, y1 = np.minimum(one[2:], other[2:])
    shared = max(x1 - x0, 0) * max(y1 - y0, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def test_the_papers_rule_keeps_the_players_in_the_foreground_and_no_one_else(tmp_path):
    rows, counts = cropped(tmp_path, options(min_side=90))
    # Where a person sees the two players who stand whole in both photographs of the pair.
    players = [np.array(box, float) for box in ((29, 82, 160, 478), (438, 19, 638, 475))]
    found = {}
    for row in rows:
        place = [overlap(np.array(row["box"]), player) > 0.7 for player in players]
        if any(place):
            found.setdefault(row["source_id"], set()).add(place.index(True))
    assert found == {"basketball1": {0, 1}, "basketball2": {0, 1}} and len(rows) == 4
    # The film's pedestrians are narrower than 90 pixels.
    assert not any(row["source_id"].startswith("vtest") for row in rows)
    assert counts["box_side"] > 20 and counts["boxes"] == len(rows) + sum(
        counts.get(reason, 0)
        for reason in ("box_score", "box_side", "box_ratio", "keypoints_few", "hips_hidden", "head_hidden")
    )


def test_with_a_lower_minimum_side_walking_persons_are_found_feet_below_heads(tmp_path):
    rows, counts = cropped(tmp_path, options(min_side=30))
    assert counts["heads_blurred"] == len(rows)
    film = [row for row in rows if row["source_id"].startswith("vtest")]
    assert len(film) > 20
    upright = 0
    for row in film:
        points = np.array(row["keypoints"])
        x0, y0, x1, y1 = row["box"]
        upright += points[:5, 1].mean() < points[11:13, 1].mean() < points[15:17, 1].mean()
        near_box = [x0 - 10, y0 - 10] <= points[:, :2], points[:, :2] <= [x1 + 10, y1 + 10]
        inside = (near_box[0] & near_box[1]).all(1)
        assert inside[points[:, 2] >= 0.2].mean() > 0.9
    assert upright > 0.9 * len(film)


def test_a_pose_of_street_without_a_person_fails_the_rule():
    chosen = options(30)
    _, pose = open_models(chosen.detector, chosen.pose)
    street = Image.open(FOLDER / "photos" / "vtest_0000.png").convert("RGB").crop((10, 10, 110, 260))
    (found,) = pose.keypoints([street])
    assert pose_problem(found, 0.2, RuleOptions()) != ""


def test_the_crops_are_pictures_of_the_boxes(tmp_path):
    rows, _ = cropped(tmp_path, replace(options(min_side=90), blur_faces=False))
    for row in rows:
        (source,) = (FOLDER / "photos").glob(f"{row['source_id']}.*")
        crop = Image.open(io.BytesIO(row["image"]["bytes"]))
        x0, y0, x1, y1 = row["box"]
        assert crop.width >= x1 - x0 - 1 and crop.height >= y1 - y0 - 1
        left, top = max(x0 - 0.05 * (x1 - x0), 0), max(y0 - 0.05 * (y1 - y0), 0)
        area = int(left), int(top), int(left) + crop.width, int(top) + crop.height
        expected = np.asarray(Image.open(source).convert("RGB").crop(area), float)
        assert np.abs(np.asarray(crop, float) - expected).mean() < 3
