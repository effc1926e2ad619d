"""How retrieval degrades when captions lose or swap words, or images are blurred, cropped, occluded, dark or coarse.

Strengths are shares of the caption or of the picture, so they mean the same at every length and size. The
change of an item depends only on the seed and the item.
"""

import random
from collections.abc import Callable

import datasets
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from dataset_webperson.images import to_rgb

from ..person_retrieval.ranking import rank_queries
from ..rows import all_captions, stable_hash
from .encoding import RetrievalSet, encode_captions, encode_images
from .metrics import query_values
from .models import Retriever
from .significance import bootstrap_interval, paired_difference
from .text_table import Table


def drop_words(caption: str, strength: float, rng: random.Random) -> str:
    """Leaves out the given share of the words; at least one word stays.

    >>> drop_words("a man in a red coat", 0.5, random.Random(0))
    'man in red'
    """
    words = caption.split()
    count = min(round(strength * len(words)), len(words) - 1)
    dropped = set(rng.sample(range(len(words)), max(count, 0)))
    return " ".join(word for place, word in enumerate(words) if place not in dropped)


def swap_words(caption: str, strength: float, rng: random.Random) -> str:
    """Exchanges the places of the given share of the words, at least two; a single word stays.

    >>> swap_words("a man in a red coat", 0.5, random.Random(1))
    'red a in a man coat'
    """
    words = caption.split()
    count = min(max(round(strength * len(words)), 2), len(words))
    places = sorted(rng.sample(range(len(words)), count))
    # each word moves to the next of these places, the last to the first, so that none stays
    moved = {place: words[places[number - 1]] for number, place in enumerate(places)}
    return " ".join(moved.get(place, word) for place, word in enumerate(words))


def blur(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Gaussian blur; its standard deviation is the given share of the height."""
    return image.filter(ImageFilter.GaussianBlur(strength * image.height))


def crop(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Cuts the given share off the height and off the width, at a random place, as a detector's poor box does."""
    width, height = (max(round((1 - strength) * side), 1) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def occlude(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Covers the given share of the area by a grey box with the picture's proportions, at a random place."""
    width, height = (max(round(strength**0.5 * side), 1) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    image = image.copy()
    image.paste((128, 128, 128), (left, top, left + width, top + height))
    return image


def darken(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Takes away the given share of the brightness."""
    return ImageEnhance.Brightness(image).enhance(1 - strength)


def coarsen(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Takes away the given share of the resolution: reduced by area averaging, then enlarged bicubically."""
    width, height = (max(round((1 - strength) * side), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


# each change and its strengths
CAPTION_CHANGES: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "words lost": (drop_words, (0.1, 0.3, 0.5)),
    "words swapped": (swap_words, (0.1, 0.3, 0.5)),
}
IMAGE_CHANGES: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "blurred": (blur, (0.01, 0.02, 0.04)),
    "cropped": (crop, (0.1, 0.2, 0.3)),
    "occluded": (occlude, (0.1, 0.25, 0.4)),
    "dark": (darken, (0.5, 0.75, 0.9)),
    "low resolution": (coarsen, (0.5, 0.75, 0.875)),
}


def measure_robustness(
    model: Retriever,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    encoded: RetrievalSet,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
    seed: int = 0,
) -> list[dict]:
    """Text-to-image R@1 under each change, and the loss against the unchanged set.

    Only the side that changes is encoded again. Intervals and tests resample whole persons.

    Args:
        model, processor, dataset, batch_size, num_workers, progress: as in `encode_retrieval_set`.
        encoded ([`RetrievalSet`]): the plain set's embeddings.
        seed (`int`): seed of the random places and words.

    Returns:
        `list[dict]`: `change`, `strength`, `R@1` ([`Interval`]) and `loss` ([`Difference`] to the plain set; `None` in
        the first entry, the plain set itself). The same in every process.
    """
    persons = encoded.text_person_ids.numpy()

    def hits(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> np.ndarray:
        ranks = rank_queries(text_embeds, image_embeds, persons, encoded.image_person_ids)
        return query_values(ranks)["R@1"]

    plain = hits(encoded.image_embeds, encoded.text_embeds)
    results = [{"change": "none", "strength": 0.0, "R@1": bootstrap_interval(plain, groups=persons), "loss": None}]

    def add(change: str, strength: float, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> None:
        values = hits(image_embeds, text_embeds)
        loss = paired_difference(values, plain, groups=persons)
        interval = bootstrap_interval(values, groups=persons)
        results.append({"change": change, "strength": strength, "R@1": interval, "loss": loss})

    captions, image_index = all_captions(dataset)
    paths = dataset["image_path"][:]
    steps = []
    for changes, of_text in ((CAPTION_CHANGES, True), (IMAGE_CHANGES, False)):
        for name, (function, strengths) in changes.items():
            steps += [(name, function, strength, of_text) for strength in strengths]
    bar = tqdm(steps, desc="Robustness", disable=not progress, leave=False)
    for name, function, strength, of_text in bar:
        bar.set_postfix_str(f"{name} {strength:g}")
        if of_text:
            changed = [
                function(caption, strength, random.Random(stable_hash(seed, name, paths[image], number)))
                for number, (caption, image) in enumerate(zip(captions, image_index.tolist(), strict=True))
            ]
            texts = encode_captions(model, processor, changed, batch_size, progress=False)
            add(name, strength, encoded.image_embeds, texts)
        else:

            def change(
                row: dict, index: int, function: Callable = function, strength: float = strength, name: str = name
            ) -> Image.Image:
                rng = random.Random(stable_hash(seed, name, row["image_path"]))
                return function(to_rgb(row["image"]), strength, rng)

            images = encode_images(model, processor, dataset, batch_size, False, num_workers, change)
            add(name, strength, images, encoded.text_embeds)
    return results


def robustness_table(results: list[dict], title: str = "Robustness") -> Table:
    """The results of [`measure_robustness`]."""
    rows = []
    for result in results:
        loss = result["loss"]
        cells = ["", "", ""]
        if loss is not None:
            cells = [f"{loss.mean:+.2f}", f"[{loss.low:+.2f}, {loss.high:+.2f}]", f"{loss.p_value:.4f}"]
        rows.append([result["change"], f"{result['strength']:g}", f"{result['R@1'].mean:.2f}", *cells])
    return Table(title, ["change", "strength", "R@1", "lost or won", "95 % interval", "p"], rows)
