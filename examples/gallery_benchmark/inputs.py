"""What the gallery's benchmark works on: drawings, their embeddings, and any number of jittered copies."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from dataset_webperson import WebPerson
from modeling_gadms import GADMSConfig, GADMSModel, GADMSProcessor
from modeling_gadms.gallery.models import Encoder
from modeling_gadms.training.starting_points import load_starting_point

SMALL_CLIP = str(Path(__file__).parents[1] / "small_clip")
JITTER = 0.5  # length of the noise beside a unit vector: a copy has a cosine of 0.89 with its original
DIMENSION = 512
BLOCK = 8192


def drawings(count: int) -> datasets.Dataset:
    """Drawn pedestrians, two images of each."""
    builder = WebPerson(
        config_name="synthetic",
        image_size=(128, 64),
        num_train_persons=2,
        num_validation_persons=2,
        num_test_persons=count // 2,
    )
    builder.download_and_prepare()
    return builder.as_dataset(split="test")


def small_model() -> Encoder:
    """The shipped small CLIP, made a GA-DMS: embeddings of 128 numbers."""
    model, processor = load_starting_point(SMALL_CLIP, (128, 64))
    return Encoder((model, processor))


def paper_size_model() -> Encoder:
    """A GA-DMS of the paper's size, 384 x 128 pixels, with random weights: only its speed counts."""
    torch.manual_seed(0)
    return Encoder((GADMSModel(GADMSConfig()).eval(), GADMSProcessor.from_clip_pretrained(SMALL_CLIP, (384, 128))))


def widened(vectors: np.ndarray) -> np.ndarray:
    """The small model's 128 numbers as 512, as models of the paper's size have; every cosine stays as it is."""
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((DIMENSION, vectors.shape[1])))
    return vectors @ turned.T


def jittered(base: np.ndarray, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`count` noisy copies of the unit vectors `base`, in blocks `(rows, dimension)` of float16."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        noise = rng.standard_normal((rows, base.shape[1]), dtype=np.float32)
        noise *= JITTER / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors = base[rng.integers(len(base), size=rows)].astype(np.float32) + noise
        yield (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def save_images(images: list[Image.Image], folder: Path) -> None:
    """The drawings as PNG files, as a user's folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:06d}.png")
