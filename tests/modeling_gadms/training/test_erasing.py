"""The boxes of random erasing: 2 to 40 % of the area, log-uniform in shape, anywhere in the image."""

import math

import pytest
import torch
from tiny import tiny_processor

from modeling_gadms.training.collator import PairCollator

SIDE = 256


@pytest.fixture(scope="module")
def boxes():
    """`(top, left, height, width)` of 1500 boxes in a square image, large beside the rounding of its sides."""
    collator = PairCollator(tiny_processor(), crop_padding=0, flip_probability=0.0, erasing_probability=1.0)
    found = []
    for seed in range(1500):
        holes = collator.augment(torch.ones(1, SIDE, SIDE), torch.Generator().manual_seed(seed))[0] == 0
        rows, columns = holes.any(dim=1).nonzero().flatten(), holes.any(dim=0).nonzero().flatten()
        found.append((rows[0].item(), columns[0].item(), len(rows), len(columns)))
        assert holes.sum() == len(rows) * len(columns)
    return found


def test_areas_are_uniform_from_2_to_40_percent(boxes):
    whole = [height * width / SIDE**2 for *_, height, width in boxes if max(height, width) < SIDE]
    assert 0.019 < min(whole) < 0.023
    areas = sorted(height * width / SIDE**2 for *_, height, width in boxes)
    assert 0.385 < areas[-1] < 0.405
    for share in (0.1, 0.25, 0.5, 0.7):  # the largest are cut by the border where they are long
        assert areas[int(share * len(areas))] == pytest.approx(0.02 + 0.38 * share, abs=0.02)


def test_shapes_are_log_uniform_from_3_to_10_to_10_to_3(boxes):
    """Among boxes of less than 30 % of the area, none is cut by the border."""
    shapes = sorted(math.log(height / width) for *_, height, width in boxes if height * width < 0.3 * SIDE**2)
    limit = math.log(10 / 3)
    assert -limit - 0.06 < shapes[0] < -limit + 0.06 and limit - 0.06 < shapes[-1] < limit + 0.06
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert shapes[int(share * len(shapes))] == pytest.approx((2 * share - 1) * limit, abs=0.12)


def test_boxes_lie_anywhere_in_the_image(boxes):
    small = [box for box in boxes if max(box[2:]) < SIDE // 2]
    for start, size in ((0, 2), (1, 3)):
        places = [box[start] / (SIDE - box[size]) for box in small]
        assert min(places) < 0.02 and max(places) > 0.98
        assert sum(places) / len(places) == pytest.approx(0.5, abs=0.05)


def test_flips_and_boxes_are_drawn_apart():
    collator = PairCollator(tiny_processor(), crop_padding=0, flip_probability=0.5, erasing_probability=0.3)
    ramp = 1 + torch.arange(32.0).expand(1, 32, 32)
    counts = {(flipped, erased): 0 for flipped in (False, True) for erased in (False, True)}
    for seed in range(800):
        pixels = collator.augment(ramp, torch.Generator().manual_seed(seed))
        kept = pixels != 0
        flipped = torch.equal(pixels[kept], ramp.flip(-1)[kept])
        assert flipped or torch.equal(pixels[kept], ramp[kept])
        counts[flipped, not kept.all().item()] += 1
    for (_, erased), count in counts.items():
        assert count / 800 == pytest.approx(0.15 if erased else 0.35, abs=0.05)
