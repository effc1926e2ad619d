"""The image tower in other arithmetic, for machines without a GPU: bfloat16, or an ONNX file, which may hold int8."""

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dataset_webperson import DataError
from dataset_webperson.findings import reason_of

from ..evaluation.encoding import embed_images

PRECISIONS = ("float32", "bfloat16")
LIKENESS = 0.9  # cosine of an image by the file and by the model; int8 has 0.99 and more, another model about 0
_TOWERS_OF_TEXT = ("text_model", "text_projection")

# pixels (images, 3, height, width) -> embeddings (images, dimension), float32, unit norm
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ImageTower:
    """What encodes the images of a gallery. Descriptions are always encoded by the model itself, in float32.

    Attributes:
        fact (`str`): `"float32"`, `"bfloat16"`, or `"onnx"` with the sha256 of the file: two galleries with the same
            model and the same fact can be compared.
        file (`str`, *optional*): of an ONNX tower.
    """

    fact: str = "float32"
    file: str | None = None

    @classmethod
    def chosen(cls, choice: str | os.PathLike) -> "ImageTower":
        """The tower that a user names: one of `PRECISIONS`, or a file that ends in `.onnx`.

        Raises:
            DataError: neither, or no such file.
        """
        choice = os.fspath(choice)
        if choice in PRECISIONS:
            return cls(choice)
        if not choice.endswith(".onnx"):
            raise DataError(
                f"image tower {choice!r:.80}: is not known; give {', '.join(PRECISIONS)}, or an .onnx file"
            )
        return cls(f"onnx sha256:{_digest(choice)}", os.path.abspath(choice))

    @classmethod
    def recorded(cls, facts: dict[str, Any]) -> "ImageTower":
        """The tower of a gallery's model facts; galleries of earlier versions were all encoded in float32."""
        return cls(facts.get("image_tower", "float32"), facts.get("image_tower_file"))

    def load(self, model: Any) -> Embed:
        """What embeds prepared images; the model's own weights, or the file.

        Raises:
            DataError: the file is gone, is another by now, or cannot be run.
        """
        if self.file is not None:
            return _OnnxTower(self, model)
        if self.fact == "bfloat16":
            own = {id(getattr(model, name)): None for name in _TOWERS_OF_TEXT if hasattr(model, name)}
            model = copy.deepcopy(model, own).to(torch.bfloat16)  # without the tower that stays in float32
        return lambda pixels: embed_images(model, {"pixel_values": pixels})


class _OnnxTower:
    """`image.onnx` of `examples/export_onnx.py`, run by ONNX Runtime, and compared with the model at its first use."""

    def __init__(self, tower: ImageTower, model: Any) -> None:
        self.file, self.model, self.is_known = str(tower.file), model, False
        if tower.fact != f"onnx sha256:{_digest(self.file)}":
            raise DataError(f"{self.file}: is another file than encoded this gallery; put that one back, or rebuild")
        try:
            import onnxruntime
        except ImportError as error:
            raise DataError(
                f"{self.file} needs onnxruntime, which is not installed; pip install gadms[onnx]"
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # which it does not read itself
        try:
            providers = onnxruntime.get_available_providers()
            self.session = onnxruntime.InferenceSession(self.file, settings, providers)
        except Exception as error:  # onnxruntime's errors have no common type
            raise DataError(f"{self.file}: cannot be run ({reason_of(error, self.file)}); export it again") from error

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        name = self.session.get_inputs()[0].name
        try:
            embeds = torch.from_numpy(self.session.run(None, {name: pixels.float().numpy()})[0])
        except Exception as error:
            raise DataError(
                f"{self.file}: does not take these images ({reason_of(error, self.file)}); export it again"
            ) from error
        embeds = torch.nn.functional.normalize(embeds.float(), dim=-1)
        if not self.is_known:
            right = embed_images(self.model, {"pixel_values": pixels[:2]})
            if embeds.shape[1:] != right.shape[1:] or (embeds[:2] * right).sum(dim=-1).min() < LIKENESS:
                raise DataError(f"{self.file}: is not the image tower of this model; export it from the same one")
            self.is_known = True
        return embeds


def _digest(path: str) -> str:
    """sha256 of a file, and of the weights that the exporter may have laid beside it."""
    digest = hashlib.sha256()
    try:
        for name in (path, f"{path}.data"):
            if name == path or os.path.exists(name):
                with open(name, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; export it by examples/export_onnx.py") from error
    return digest.hexdigest()
