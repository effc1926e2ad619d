"""Object detectors and ViTPose from transformers, by Hub id or folder."""

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

from .rule import FLOOR, NUM_KEYPOINTS


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class TransformersDetector:
    """Any `AutoModelForObjectDetection` with a class named "person", such as D-FINE or RT-DETRv2."""

    def __init__(self, model: str, revision: str | None = None):
        self.processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        self.model = AutoModelForObjectDetection.from_pretrained(model, revision=revision).eval().to(_device())
        labels = {name.lower(): int(number) for number, name in self.model.config.id2label.items()}
        if "person" not in labels:
            raise ValueError(f'no class "person" among its {len(labels)} classes')
        self.person = labels["person"]

    @torch.inference_mode()
    def persons(self, images: list[Image.Image]) -> list[np.ndarray]:
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        sizes = [(image.height, image.width) for image in images]
        found = self.processor.post_process_object_detection(outputs, threshold=FLOOR, target_sizes=sizes)
        boxes = []
        for result in found:
            chosen = result["labels"] == self.person
            scores = result["scores"][chosen].float().cpu().numpy()
            part = np.concatenate([result["boxes"][chosen].float().cpu().numpy(), scores[:, None]], axis=1)
            boxes.append(part[np.argsort(-scores, kind="stable")])
        return boxes


class TransformersPose:
    """ViTPose; models with experts (ViTPose++) use the expert trained on COCO."""

    def __init__(self, model: str, revision: str | None = None):
        self.processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        self.model = VitPoseForPoseEstimation.from_pretrained(model, revision=revision or "main").eval().to(_device())
        if self.model.config.num_labels != NUM_KEYPOINTS:
            raise ValueError(f"{self.model.config.num_labels} keypoints; the rule needs COCO's {NUM_KEYPOINTS}")
        self.experts = getattr(self.model.config.backbone_config, "num_experts", 1) > 1

    @torch.inference_mode()
    def keypoints(self, crops: list[Image.Image]) -> list[np.ndarray]:
        boxes = [[[0.0, 0.0, float(crop.width), float(crop.height)]] for crop in crops]  # x, y, width, height
        inputs = self.processor(crops, boxes=boxes, return_tensors="pt").to(self.model.device)
        if self.experts:
            inputs["dataset_index"] = torch.zeros(len(crops), dtype=torch.long, device=self.model.device)
        found = self.processor.post_process_pose_estimation(self.model(**inputs), boxes=boxes)
        poses = []
        for (person,) in found:
            pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
            pose[person["labels"].numpy()] = np.concatenate(
                [person["keypoints"].numpy(), person["scores"].numpy()[:, None]], axis=1
            )
            poses.append(pose)
        return poses
