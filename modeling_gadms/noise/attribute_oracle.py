"""What the pixels of drawn persons allow: a classifier that is taught the true attributes of other persons.

It reads labels that no method of the benchmark has. What it tells false words from true ones by is what the pictures
show at their size, so its figures are a ceiling to hold methods against, as far as its own training reaches.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import trange

from dataset_webperson.drawn.attributes import WORDS, value_of_words
from dataset_webperson.drawn.rows import generate_rows

VALUES = {attribute: ["none", *values] for attribute, values in WORDS.items()}
WIDTHS = 32, 64, 128, 128  # channels of the convolutions, each of which halves the picture
BATCH_SIZE = 64
PEAK_RATE = 2e-3


class AttributeOracle(nn.Module):
    """Convolutions, then one softmax for each attribute, "none" among its values.

    Args:
        image_size (`tuple[int, int]`): height and width in pixels.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        places = -(-image_size[0] // 16) * -(-image_size[1] // 16)  # where a thing is says what it is
        self.hidden = nn.Sequential(
            nn.Linear(places * WIDTHS[-1], 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.3)
        )
        self.heads = nn.ModuleList(nn.Linear(512, len(values)) for values in VALUES.values())

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """`(B, 3, height, width)` in 0-1 -> logits `(B, values)` of each attribute, in the order of `VALUES`."""
        hidden = self.hidden(self.features(pixels - 0.5))
        return [head(hidden) for head in self.heads]


def train_oracle(
    image_size: tuple[int, int],
    num_persons: int,
    epochs: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttributeOracle:
    """Teach the true attributes of drawn persons; none of them is in a benchmark, whose persons are of `train`.

    Args:
        num_persons (`int`): drawn in one view each, and shown mirrored every other time.
        epochs (`int`): times that each is seen.
        seed (`int`): of the persons, the weights and the order; torch's global generators are left alone.
        device (`torch.device`): to learn on; the pictures stay in memory.
    """
    options: dict[str, Any] = {"image_size": image_size, "views_per_person": 1, "noise_rate": 0.0, "seed": seed}
    rows = list(generate_rows("validation", 0, num_persons, **options))
    pixels = _pixels([Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows])
    truths = [json.loads(row["attributes"]) for row in rows]
    targets = torch.tensor([[VALUES[name].index(truth[name]) for name in VALUES] for truth in truths])
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws there
        torch.manual_seed(seed)
        oracle = AttributeOracle(image_size).to(device)
        optimizer = torch.optim.AdamW(oracle.parameters(), weight_decay=1e-2)
        batches = -(-num_persons // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * batches)
        for _ in trange(epochs, desc="Teaching true attributes"):
            for chosen in torch.randperm(num_persons).tensor_split(batches):
                shown = pixels[chosen].float() / 255
                shown = torch.where(torch.rand(len(chosen), 1, 1, 1) < 0.5, shown.flip(-1), shown)
                logits, truth = oracle(shown.to(device)), targets[chosen].to(device)
                losses = [F.cross_entropy(one, truth[:, n]) for n, one in enumerate(logits)]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
                schedule.step()
    return oracle.eval()


@torch.no_grad()
def oracle_trust(
    oracle: AttributeOracle, images: Sequence[Image.Image], rows: Mapping[str, Any], name: str
) -> list[list[float | None]]:
    """Probability of what each word says to be true of its image; None for a word of no attribute that is known.

    Args:
        rows: a batch of rows with the columns `name` and `<name>_words`, each a list as long as `images`.
    """
    pixels = _pixels(images).to(next(oracle.parameters()).device).float() / 255
    seen, mirrored = oracle(pixels), oracle(pixels.flip(-1))
    means = [
        ((one.softmax(dim=-1) + other.softmax(dim=-1)) / 2).cpu() for one, other in zip(seen, mirrored, strict=True)
    ]
    probabilities = dict(zip(VALUES, means, strict=True))
    found: list[list[float | None]] = []
    for row, (caption, words) in enumerate(zip(rows[name], rows[f"{name}_words"], strict=True)):
        own: list[float | None] = []
        for word in words:
            attribute = word["attribute"]
            try:
                value = value_of_words(attribute, caption[word["start"] : word["end"]].lower())
            except KeyError:
                own.append(None)
                continue
            own.append(float(probabilities[attribute][row, VALUES[attribute].index(value)]))
        found.append(own)
    return found


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """`(B, 3, height, width)` uint8."""
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).permute(0, 3, 1, 2)
