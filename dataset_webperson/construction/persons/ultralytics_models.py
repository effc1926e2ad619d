"""YOLO11, the paper's detector, through the package `ultralytics`, which the user installs.

`ultralytics` and its weights are under AGPL-3.0, not under this project's licence: whoever offers a service, or
distributes a product, built with them must publish its source or buy their other licence. Nothing here depends on it.
"""

import numpy as np
import ultralytics
from PIL import Image

from .rule import FLOOR

_PERSON = 0


class UltralyticsDetector:
    """A detection model, such as `yolo11x.pt`."""

    def __init__(self, model: str):
        self.model = ultralytics.YOLO(model)

    def persons(self, images: list[Image.Image]) -> list[np.ndarray]:
        found = self.model.predict(images, conf=FLOOR, classes=[_PERSON], verbose=False)
        boxes = [np.concatenate([result.boxes.xyxy, result.boxes.conf[:, None]], axis=1) for result in found]
        return [part[np.argsort(-part[:, 4], kind="stable")].astype(np.float32) for part in boxes]


class UltralyticsPose:
    """A pose model of COCO's keypoints, such as `yolo11x-pose.pt`; the best person of each crop."""

    def __init__(self, model: str):
        self.model = ultralytics.YOLO(model)

    def keypoints(self, crops: list[Image.Image]) -> list[np.ndarray]:
        found = self.model.predict(crops, conf=FLOOR, verbose=False)
        # The first person is the best one; where the model sees nobody, no keypoint is visible.
        return [
            np.asarray(result.keypoints.data[0], np.float32) if len(result.boxes) else np.zeros((17, 3), np.float32)
            for result in found
        ]
