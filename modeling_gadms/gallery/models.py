"""Which model made a gallery, and the check that the same one asks it."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from dataset_webperson import DataError
from dataset_webperson.safe_paths import end_of_path

from ..evaluation.encoding import encode_captions
from ..evaluation.models import load_retriever
from ..modeling_gadms import GADMSForPreTraining
from .explaining import Explanation, explain
from .image_towers import Embed, ImageTower

# the facts that decide whether two embeddings can be compared; name and revision only say where to find the model
DECISIVE = {
    "weights_sha256": "weights",
    "image_size": "image size",
    "normalisation": "normalisation",
    "image_tower": "image tower",
}


class Encoder:
    """A model with its processor, as a gallery uses them. Safe for threads: one query is encoded at a time.

    Args:
        model: folder or Hub id, or `(model, processor)`.
        revision (`str`, *optional*): of a Hub model, a commit, branch or tag; `main` by default.
        image_tower ([`ImageTower`]): what encodes images; loaded at the first one, for descriptions do without it.
    """

    def __init__(
        self,
        model: str | os.PathLike | tuple[Any, Any],
        revision: str | None = None,
        image_tower: ImageTower | None = None,
    ) -> None:
        if isinstance(model, tuple):
            self.model, self.processor = model
            if isinstance(self.model, GADMSForPreTraining):
                self.model = self.model.gadms
            self.name = str(getattr(self.model.config, "_name_or_path", "") or "")
        else:
            self.name = os.fspath(model)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            try:
                self.model, self.processor = load_retriever(self.name, revision=revision, device=device)
            except DataError:
                raise
            except (OSError, ValueError, SafetensorError) as error:
                reason = " ".join(str(error).split())
                raise DataError(reason if reason.startswith(self.name) else f"{self.name}: {reason}") from error
        if os.path.isdir(self.name):
            self.name = os.path.abspath(self.name)
        self.model.eval()
        self.image_tower = image_tower or ImageTower()
        self._embed: Embed | None = None
        self._lock = threading.Lock()  # a tokenizer remembers how its last call padded
        self.facts = self._facts()

    def _facts(self) -> dict[str, Any]:
        images = self.processor.image_processor
        size, digest = dict(images.size), hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {
            "id": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "weights_sha256": digest.hexdigest(),
            "image_size": [int(size[side]) for side in ("height", "width", "shortest_edge") if size.get(side)],
            "normalisation": {"mean": list(images.image_mean), "std": list(images.image_std)},
            "image_tower": self.image_tower.fact,
            "image_tower_file": self.image_tower.file,
        }

    @property
    def dimension(self) -> int:
        return self.texts(["a person"]).shape[1]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `(texts, dimension)`, float64, unit norm."""
        with self._lock:
            return encode_captions(self.model, self.processor, list(texts), progress=False).double().numpy()

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings `(images, dimension)`, float64, unit norm."""
        with self._lock:
            pixels = self.processor(images=list(images), return_tensors="pt")
        return self.pixels(pixels["pixel_values"]).astype(np.float64)

    def pixels(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Embeddings of prepared images, float32."""
        with self._lock:
            if self._embed is None:
                self._embed = self.image_tower.load(self.model)
        with torch.no_grad():
            return self._embed(pixel_values).numpy()

    def explain(self, texts: Sequence[str], image: Image.Image) -> Explanation:
        """Why an image matches; see [`explain`]."""
        with self._lock:
            return explain(self.model, self.processor, list(texts), image, self.name)


def as_encoder(model: Any, image_tower: ImageTower | None = None) -> Encoder:
    """An [`Encoder`] of what a gallery is given: one, a folder or Hub id, or `(model, processor)`."""
    return model if isinstance(model, Encoder) else Encoder(model, image_tower=image_tower)


def public_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as strangers may see them: of a folder or file on this machine, its last name alone."""
    return facts | {name: end_of_path(facts[name]) for name in ("id", "image_tower_file") if facts.get(name)}


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What keeps the embeddings of two models from being compared, in words."""
    recorded = {**recorded, "image_tower": ImageTower.recorded(recorded).fact}
    return [word for name, word in DECISIVE.items() if recorded[name] != found[name]]


def digest_of(facts: dict[str, Any]) -> str:
    """A short name for what embeds: equal where embeddings can be compared."""
    return hashlib.sha256(json.dumps([facts[name] for name in DECISIVE]).encode()).hexdigest()[:12]


def refuse_other(recorded: dict[str, Any], found: dict[str, Any], path: str | os.PathLike) -> None:
    """Stop where a gallery would be asked by another model than made it.

    Raises:
        DataError: names what differs.
    """
    if different := differences(recorded, found):
        raise DataError(
            f"{path}: made by the model {recorded['id'] or 'of no name'}, and {found['id'] or 'the one given'} has "
            f"other {' and '.join(different)}; ask with the model that made it, or run the command `rebuild`"
        )
