"""The rule that decides which detected persons are kept.

| what | the paper | here |
|---|---|---|
| confidence of the box | > 0.85 (of YOLO11) | above `min_score` of the detector's options, as it is its own |
| shorter side | >= 90 px (its figure: width > 90) | `min_side`, inclusive, as its text |
| height / width | between 2 and 4 | `min_ratio`, `max_ratio`, inclusive |
| visible keypoints of COCO's 17 | >= 8 | `min_keypoints`; visible: score >= `min_score` of the pose model's options |
| hips | >= 1 | `min_hips` |
| nose, eyes, ears | >= 2 | `min_head` |
"""

from dataclasses import dataclass

import numpy as np

NUM_KEYPOINTS = 17  # COCO: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left before right
# Detectors return hundreds of meaningless boxes; those that score below this do not count as rejected persons.
FLOOR = 0.1
TWO_PERSONS = 0.2  # a crop of whose box another person's covers as much is counted as one with two
_SAME = 0.7
HEAD, HIPS = slice(0, 5), slice(11, 13)


@dataclass(frozen=True)
class RuleOptions:
    """Thresholds that hold for every model; the score thresholds are options of the models.

    `max_overlap`: the share of a box that the box of another person may cover; 1, unlike the paper's rule, which does
    not look at it, rejects none.
    """

    min_side: float = 90.0
    min_ratio: float = 2.0
    max_ratio: float = 4.0
    min_keypoints: int = 8
    min_hips: int = 1
    min_head: int = 2
    max_overlap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.min_ratio <= self.max_ratio:
            raise ValueError(
                f"min_ratio must be above 0 and at most max_ratio, not {self.min_ratio} with {self.max_ratio}"
            )


def box_problem(box: np.ndarray, min_score: float, rule: RuleOptions) -> str:
    """Why a box is rejected, `box_score`, `box_side` or `box_ratio`, the first that applies; "" if it is kept.

    Args:
        box (`np.ndarray` of shape `(5,)`): x0, y0, x1, y1 in pixels, score. The score must be above `min_score`.
    """
    x0, y0, x1, y1, score = (float(value) for value in box)
    width, height = x1 - x0, y1 - y0
    if not score > min_score:
        return "box_score"
    if not min(width, height) >= rule.min_side:
        return "box_side"
    return "" if rule.min_ratio <= height / width <= rule.max_ratio else "box_ratio"


def covered_by_another(box: np.ndarray, others: np.ndarray, min_score: float) -> float:
    """The largest share of a box that another person's covers.

    Others count from half the score that a person must have; those that are nearly the same box, with an intersection
    of more than 0.7 of the union, are the same person found twice.

    Args:
        box (`np.ndarray` of shape `(5,)`): x0, y0, x1, y1, score.
        others (`np.ndarray` of shape `(n, 5)`).
        min_score: what a person must score.
    """
    sides = np.minimum(box[2:4], others[:, 2:4]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    area = (box[2:4] - box[:2]).prod()
    union = area + (others[:, 2:4] - others[:, :2]).prod(1) - common
    counted = (others[:, 4] > min_score / 2) & (common <= _SAME * union)
    return float((common[counted] / area).max(initial=0)) if area > 0 else 0.0


def pose_problem(keypoints: np.ndarray, min_score: float, rule: RuleOptions) -> str:
    """Why a pose is rejected, `keypoints_few`, `hips_hidden` or `head_hidden`, the first that applies; "" if kept.

    Args:
        keypoints (`np.ndarray` of shape `(17, 3)`): x, y, score in COCO's order.
    """
    visible = keypoints[:, 2] >= min_score
    if visible.sum() < rule.min_keypoints:
        return "keypoints_few"
    if visible[HIPS].sum() < rule.min_hips:
        return "hips_hidden"
    return "head_hidden" if visible[HEAD].sum() < rule.min_head else ""


def crop_area(box: np.ndarray, margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, extended on each side by `margin` times its width or height, clipped to the image."""
    x0, y0, x1, y1 = (float(value) for value in box[:4])
    across, down = margin * (x1 - x0), margin * (y1 - y0)
    left, top = int(np.floor(max(x0 - across, 0))), int(np.floor(max(y0 - down, 0)))
    return left, top, int(np.ceil(min(x1 + across, width))), int(np.ceil(min(y1 + down, height)))
