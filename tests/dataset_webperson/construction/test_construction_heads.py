"""The ellipse around a head against the rule written out, and what a blurred head still shows."""

import math
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from made_up_persons import GOOD, STUB_CROP, picture, stub_crop_shard
from made_up_webperson import add_member
from PIL import Image

from dataset_webperson.construction.persons.heads import Ellipse, blur_head, head_ellipse
from dataset_webperson.construction.shards import read_rows
from dataset_webperson.images import decode_rgb

NAMES = ["nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder"]
# Centimetres of somebody 175 cm tall who looks at the camera, from the middle of the shoulders: right, down.
FRONT = {
    "nose": (0, -22), "left eye": (3.2, -26), "right eye": (-3.2, -26), "left ear": (7.5, -24),
    "right ear": (-7.5, -24), "left shoulder": (18, 0), "right shoulder": (-18, 0),
}  # fmt: skip
TURNED = {"nose": (10, -22), "left eye": (7, -26), "left ear": (-2, -24), "left shoulder": (0, 0)}
BEHIND = {name: FRONT[name] for name in ("left ear", "right ear", "left shoulder", "right shoulder")}
# Where a face's own points lie: brows, chin, corners of the mouth.
FACES = {"front": ((0, -30), (0, -15.5), (3, -18.5), (-3, -18.5)), "turned": ((9, -30), (7, -15.5), (8, -18.5))}


def pose(points, scale=1.0, at=(60.0, 50.0)):
    found = np.zeros((17, 3))
    for name, (x, y) in points.items():
        found[NAMES.index(name)] = (at[0] + scale * x, at[1] + scale * y, 0.9)
    for number, x in ((11, 12), (12, -12)):
        found[number] = (at[0] + scale * x, at[1] + scale * 50, 0.9)
    return found


def by_the_table(points, least, height):
    """The table of the module, one line after the other."""
    x, y, score = points.T.tolist()
    far = lambda a, b: math.hypot(x[a] - x[b], y[a] - y[b])  # noqa: E731
    seen = [value >= least for value in score]
    halves = [0.05 * height]
    for one, other, share in ((3, 4, 0.85), (1, 2, 1.9), (1, 3, 1.3), (2, 4, 1.3), (0, 3, 1), (0, 4, 1), (5, 6, 0.32)):
        if seen[one] and seen[other]:
            halves.append(share * far(one, other))
    middles = []
    for pair in ((5, 6), (11, 12)):
        if there := [number for number in pair if seen[number]]:
            middles.append((sum(x[n] for n in there) / len(there), sum(y[n] for n in there) / len(there)))
    if len(middles) == 2:
        halves.append(0.24 * math.dist(*middles))
    head = [number for number in range(5) if seen[number]]
    if not head:
        return None
    half = min(max(halves), 0.15 * height)
    return sum(x[n] for n in head) / len(head), sum(y[n] for n in head) / len(head), 0.9 * half, 1.15 * half


def test_the_ellipse_follows_the_table():
    random, missing = np.random.default_rng(0), 0
    for _ in range(300):
        points = np.column_stack([random.random((17, 2)) * [60, 120], random.random(17) ** 2])
        height, least = int(random.integers(100, 900)), 0.3
        expected = by_the_table(points, least, height)
        missing += expected is None
        found = head_ellipse(points, least, height)
        assert found == (expected if expected is None else pytest.approx(expected))
    assert missing


@pytest.mark.parametrize("points, face", [(FRONT, "front"), (TURNED, "turned"), (BEHIND, "front")])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_whole_face_lies_in_the_ellipse_and_the_shoulders_do_not(points, face, scale):
    x, y, across, down = head_ellipse(pose(points, scale), 0.3, round(185 * scale))
    for place in FACES[face]:
        right, below = (60 + scale * place[0], 50 + scale * place[1])
        assert math.hypot((right - x) / across, (below - y) / down) < 1, place
    assert y + 1.2 * down < 50 - 0.5 * scale and across < 13 * scale


def test_a_blurred_head_keeps_no_detail_and_everything_else_stays():
    noise = np.random.default_rng(0).integers(0, 256, (200, 80, 3), dtype=np.uint8)
    x, y, across, down = ellipse = Ellipse(40.0, 30.0, 12.0, 16.0)
    blurred = np.asarray(blur_head(Image.fromarray(noise), ellipse)).astype(int)
    rows, columns = np.mgrid[:200, :80] + 0.5
    distance = np.hypot((columns - x) / across, (rows - y) / down)
    assert np.array_equal(blurred[distance >= 1.2], noise[distance >= 1.2])
    inside = blurred[distance < 1]
    assert noise[distance < 1].std() > 70 and inside.std() < 20
    # Neighbours differ by less than a step of the cells: 6.4 pixels high, of means that differ by some tens.
    assert np.abs(np.diff(blurred, axis=0))[(distance < 1)[1:] & (distance < 1)[:-1]].max() < 20


def test_colours_of_a_head_stay_and_an_ellipse_may_reach_over_the_edge_or_lie_outside():
    image = Image.new("RGB", (40, 100), (200, 120, 40))
    assert blur_head(image, Ellipse(2.0, 3.0, 12.0, 16.0)).tobytes() == image.tobytes()
    assert blur_head(image, Ellipse(-50.0, 3.0, 12.0, 16.0)) is image


def test_crops_are_blurred_unless_the_options_say_no_with_whoever_else_stands_in_them(tmp_path):
    # The second box is too wide to be kept, and covers a part of the first crop, whose head lies elsewhere.
    second = (110, 150, 210, 290, 0.97, "seen")
    for name, boxes in (("one", (GOOD,)), ("two", (GOOD, second))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add_member(tar, "a.png", picture(*boxes, seed=3))
    found = {}
    for name in ("one", "two"):
        images = []
        for blurred in (True, False):
            target = str(tmp_path / f"{name}-{blurred}.parquet")
            counts = stub_crop_shard(str(tmp_path / f"{name}.tar"), target, replace(STUB_CROP, blur_faces=blurred))
            assert counts.get("heads_blurred", 0) == blurred * counts["rows_out"]
            row = next(read_rows(target))
            images.append(np.asarray(decode_rgb(row["image"]["bytes"], "a")).astype(int))
        found[name] = np.abs(images[0] - images[1]).max(2) > 8
        assert found[name].any()
    assert not found["one"][100:].any() and found["two"][100:].any()
