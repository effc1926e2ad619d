"""Models in ONNX files: detectors with the outputs of TensorFlow's detection models, and MoveNet for poses."""

import os

import numpy as np
import onnxruntime
from PIL import Image

from .rule import FLOOR, NUM_KEYPOINTS

_PERSON = 1  # TensorFlow's detection models count COCO's classes from 1
_TYPES = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}


class _OnnxModel:
    def __init__(self, path: str):
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        # onnxruntime ignores this variable; without the line, each of several processes would take all cores.
        settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        try:
            self.session = onnxruntime.InferenceSession(path, settings, onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime's errors have no common type
            raise ValueError(str(error)[:200]) from error
        (self.input,) = self.session.get_inputs()
        self.outputs = [output.name.partition(":")[0] for output in self.session.get_outputs()]
        if self.input.type not in _TYPES or len(self.input.shape) != 4 or self.input.shape[3] != 3:
            raise ValueError(
                f"its input is {self.input.type} {self.input.shape}; images (batch, height, width, 3) wanted"
            )
        # A dimension that the file leaves open is a name, not a number.
        self.batched = not isinstance(self.input.shape[0], int)

    def size(self, default: int) -> tuple[int, int]:
        """The (width, height) of the model's input; `default` for a side that the file leaves open."""
        height, width = (side if isinstance(side, int) else default for side in self.input.shape[1:3])
        return width, height

    def run(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """`(n, height, width, 3)` of 0..255 -> each output, `(n, ...)`."""
        pictures = pictures.astype(_TYPES[self.input.type])
        parts = [pictures] if self.batched else [pictures[number : number + 1] for number in range(len(pictures))]
        results = [self.session.run(None, {self.input.name: part}) for part in parts]
        return dict(zip(self.outputs, map(np.concatenate, zip(*results, strict=True)), strict=True))


class OnnxDetector(_OnnxModel):
    """Outputs `detection_boxes` (n, k, 4: y0, x0, y1, x1 in 0..1), `detection_scores`, `detection_classes` (n, k)."""

    def __init__(self, path: str):
        super().__init__(path)
        if missing := {"detection_boxes", "detection_scores", "detection_classes"} - set(self.outputs):
            raise ValueError(f"no output {', '.join(sorted(missing))}; it has {', '.join(self.outputs)}")

    def persons(self, images: list[Image.Image]) -> list[np.ndarray]:
        size = self.size(300)
        pictures = np.stack([np.asarray(image.resize(size, Image.Resampling.BILINEAR)) for image in images])
        found = self.run(pictures)
        boxes = []
        for number, image in enumerate(images):
            scores = found["detection_scores"][number]
            chosen = (found["detection_classes"][number].round() == _PERSON) & (scores >= FLOOR)
            y0, x0, y1, x1 = np.clip(found["detection_boxes"][number][chosen], 0, 1).T
            part = np.stack(
                [x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height, scores[chosen]], axis=1
            )
            boxes.append(part[np.argsort(-part[:, 4], kind="stable")].astype(np.float32))
        return boxes


class OnnxPose(_OnnxModel):
    """MoveNet: one output (n, 1, 17, 3): y, x in 0..1 of the square picture, score."""

    def __init__(self, path: str):
        super().__init__(path)
        (shape, *others) = [output.shape for output in self.session.get_outputs()]
        if others or shape[-2:] != [NUM_KEYPOINTS, 3]:
            raise ValueError(f"one output (batch, 1, {NUM_KEYPOINTS}, 3) wanted; it has {[shape, *others]}")

    def keypoints(self, crops: list[Image.Image]) -> list[np.ndarray]:
        width, height = self.size(256)
        pictures = np.zeros((len(crops), height, width, 3), np.uint8)
        places = []
        for picture, crop in zip(pictures, crops, strict=True):
            # The whole crop goes to the middle of the square, with its proportions.
            scale = min(width / crop.width, height / crop.height)
            inner = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
            left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
            picture[top : top + inner[1], left : left + inner[0]] = np.asarray(
                crop.resize(inner, Image.Resampling.BILINEAR)
            )
            places.append((left, top, scale))
        (found,) = self.run(pictures).values()
        poses = found.reshape(len(crops), NUM_KEYPOINTS, 3).astype(np.float32)
        return [
            np.stack([(pose[:, 1] * width - left) / scale, (pose[:, 0] * height - top) / scale, pose[:, 2]], axis=1)
            for pose, (left, top, scale) in zip(poses, places, strict=True)
        ]
