"""What a pose tells of how a person is seen: from behind, seated, partly hidden. The report says it; no rule asks."""

from collections import Counter

import numpy as np

TRAITS = ("back", "seated", "occluded")
_LEFT_SHOULDER, _RIGHT_SHOULDER = 5, 6
_SHOULDERS, _HIPS, _KNEES, _BODY = slice(5, 7), slice(11, 13), slice(13, 15), slice(5, 17)
_TURNED = 0.25  # width of the shoulders as a share of the torso's length, below which a person is seen from the side
_BENT = 0.5  # height of the thighs as a share of the torso's length; they are about equal in who stands
_HIDDEN = 3  # of the twelve keypoints from shoulders to ankles


def traits(keypoints: np.ndarray, min_score: float) -> dict[str, bool]:
    """Which of `TRAITS` a person has; one that the visible keypoints do not tell is left out.

    - back: the left shoulder lies to the left of the right one, clearly so; tells with both shoulders and a hip;
    - seated: the thighs are seen shorter than half the torso; tells with a shoulder, and a hip and a knee of one side;
    - occluded: three or more keypoints from shoulders to ankles are hidden, or outside the picture.

    Args:
        keypoints (`np.ndarray` of shape `(17, 3)`): x, y, score in COCO's order.
        min_score: from which a keypoint is visible.
    """
    visible = keypoints[:, 2] >= min_score
    found = {"occluded": int((~visible[_BODY]).sum()) >= _HIDDEN}
    if not visible[_SHOULDERS].any() or not visible[_HIPS].any():
        return found
    heights = keypoints[:, 1]
    torso = heights[_HIPS][visible[_HIPS]].mean() - heights[_SHOULDERS][visible[_SHOULDERS]].mean()
    if torso <= 0:  # upside down, or lying
        return found
    if visible[_SHOULDERS].all():
        width = keypoints[_RIGHT_SHOULDER, 0] - keypoints[_LEFT_SHOULDER, 0]
        found["back"] = bool(width >= _TURNED * torso)
    legs = visible[_HIPS] & visible[_KNEES]
    if legs.any():
        found["seated"] = bool((heights[_KNEES] - heights[_HIPS])[legs].mean() < _BENT * torso)
    return found


def count_traits(counts: Counter[str], reason: str, found: dict[str, bool]) -> None:
    """Count a person under the reason for which it was rejected, or "kept"."""
    counts[f"{reason}/persons"] += 1
    for name, has in found.items():
        counts[f"{reason}/{name}_told"] += 1
        counts[f"{reason}/{name}"] += has
