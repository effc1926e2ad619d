"""Pictures that a classifier takes for unsafe, which are not looked at for persons; COYO's metadata has such scores.

Any image classification model of transformers serves that has a label for such pictures, such as
`Falconsai/nsfw_image_detection`, whose labels are `normal` and `nsfw`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image

from ...findings import DataError
from ..shards import CHANGEABLE


@dataclass(frozen=True)
class NsfwOptions:
    """Which classifier, and what it may say of a picture. A value that makes no sense raises `ValueError`.

    Args:
        model: Hub id or folder.
        revision: branch, tag or commit of the Hub repository.
        label: of its labels, the one of unsafe pictures.
        max_score: highest probability of that label.
        batch_size: pictures per call.
    """

    model: str
    revision: str | None = None
    label: str = "nsfw"
    max_score: float = 0.5
    batch_size: int = field(default=16, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if not 0 <= self.max_score <= 1 or self.batch_size < 1:
            raise ValueError(
                f"max_score is in 0..1 and batch_size at least 1, not {self.max_score} and {self.batch_size}"
            )


class NsfwClassifier:
    """A model that says how probably a picture is unsafe."""

    def __init__(self, options: NsfwOptions):
        import torch  # here: who checks nothing need not wait for it
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.options = options
        self._processor = AutoImageProcessor.from_pretrained(options.model, revision=options.revision)
        model = AutoModelForImageClassification.from_pretrained(options.model, revision=options.revision)
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        labels = {name.lower(): int(number) for number, name in model.config.id2label.items()}
        if options.label.lower() not in labels:
            raise DataError(
                f"{options.model}: no label {options.label!r}, but {', '.join(labels)}; set `crop.nsfw.label`"
            )
        self._label = labels[options.label.lower()]

    def scores(self, images: list[Image.Image]) -> list[float]:
        """The probability of each RGB picture to be unsafe."""
        import torch

        found: list[float] = []
        for start in range(0, len(images), self.options.batch_size):
            part = images[start : start + self.options.batch_size]
            inputs = self._processor(images=part, return_tensors="pt").to(self._model.device)
            with torch.inference_mode():
                logits = self._model(**inputs).logits.float()
            found += logits.softmax(-1)[:, self._label].tolist()
        return found


@lru_cache(maxsize=1)  # a process opens its model once
def open_classifier(options: NsfwOptions) -> Any:
    return NsfwClassifier(options)
