"""Person detectors and pose models: their interface to the pipeline, and how to open one from its options."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...findings import DataError

BACKENDS = ("transformers", "onnx", "ultralytics")


class PersonDetector(Protocol):
    """Finds persons."""

    def persons(self, images: list[Image.Image]) -> list[np.ndarray]:
        """For each RGB image an array `(n, 5)` float32: x0, y0, x1, y1 in pixels and a score in 0..1, best first."""


class PoseModel(Protocol):
    """Finds the 17 COCO keypoints of the one person that a picture shows."""

    def keypoints(self, crops: list[Image.Image]) -> list[np.ndarray]:
        """For each RGB crop an array `(17, 3)` float32: x, y in pixels and a score in 0..1."""


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector, and its threshold.

    Args:
        backend: `"transformers"`, `"onnx"` or `"ultralytics"`.
        model: Hub id or folder; path of an ONNX file; name or path of ultralytics weights.
        revision: branch, tag or commit of the Hub repository.
        min_score: boxes must score above it. The paper's 0.85 is meant for YOLO11; other detectors need their own.
    """

    backend: str = "transformers"
    model: str = "ustc-community/dfine-medium-coco"
    revision: str | None = None
    min_score: float = 0.85

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class PoseOptions:
    """Which pose model, and the score from which a keypoint is visible, which the paper does not give."""

    backend: str = "transformers"
    model: str = "usyd-community/vitpose-base-simple"
    revision: str | None = None
    min_score: float = 0.3

    def __post_init__(self) -> None:
        _check(self)


def _check(options: DetectorOptions | PoseOptions) -> None:
    if options.backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {options.backend!r}")
    if not 0 <= options.min_score < 1:
        raise ValueError(f"min_score is in 0..1, not {options.min_score}")


@lru_cache(maxsize=1)  # a process opens its models once, however many shards it works on
def open_models(detector: DetectorOptions, pose: PoseOptions) -> tuple[PersonDetector, PoseModel]:
    """The two models, on the GPU if there is one.

    Raises:
        `DataError`: a package or a model is missing; the message says what to install or change.
    """
    return _open(detector, "Detector"), _open(pose, "Pose")


def _open(options: DetectorOptions | PoseOptions, kind: str) -> Any:
    try:
        if options.backend == "onnx":
            from . import onnx_models

            return getattr(onnx_models, f"Onnx{kind}")(options.model)
        if options.backend == "ultralytics":
            from . import ultralytics_models

            return getattr(ultralytics_models, f"Ultralytics{kind}")(options.model)
        from . import transformers_models

        return getattr(transformers_models, f"Transformers{kind}")(options.model, options.revision)
    except ModuleNotFoundError as error:
        package = {"onnx": "onnxruntime"}.get(options.backend, options.backend)
        raise DataError(
            f"backend: {options.backend} needs the package {error.name}: pip install {package}"
            + (" (AGPL-3.0: read its licence first)" if package == "ultralytics" else "")
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{options.model}: cannot be opened by {options.backend} ({error})") from error
