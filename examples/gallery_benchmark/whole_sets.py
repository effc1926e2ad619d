"""Encoding a whole set beside the plain way: one batch after another, as items come, each prepared when it is due."""

import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
import torch.nn.functional as F

from modeling_gadms.evaluation.encoding import caption_options, encode_captions, encode_images
from modeling_gadms.gallery.models import Encoder

BATCH = 64


@torch.no_grad()
def plain_images(encoder: Encoder, rows: datasets.Dataset) -> torch.Tensor:
    parts = []
    for first in range(0, len(rows), BATCH):
        images = [rows[number]["image"] for number in range(first, min(first + BATCH, len(rows)))]
        inputs = encoder.processor(images=images, return_tensors="pt").to(encoder.model.device)
        parts.append(F.normalize(encoder.model.get_image_features(**inputs).pooler_output.float(), dim=-1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def plain_captions(encoder: Encoder, captions: list[str]) -> torch.Tensor:
    parts, options = [], caption_options(encoder.model.config)
    for first in range(0, len(captions), BATCH):
        inputs = encoder.processor(text=captions[first : first + BATCH], **options).to(encoder.model.device)
        parts.append(F.normalize(encoder.model.get_text_features(**inputs).pooler_output.float(), dim=-1).cpu())
    return torch.cat(parts)


def beside_the_plain_way(encoder: Encoder, rows: datasets.Dataset, captions: list[str], rounds: int) -> str:
    """A table of items per second, wall time, the best of rounds in which both ways take turns."""
    model, processor = encoder.model, encoder.processor
    ways: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
        "images": (
            len(rows),
            lambda: plain_images(encoder, rows),
            lambda: encode_images(model, processor, rows, BATCH, progress=False),
        ),
        "captions": (
            len(captions),
            lambda: plain_captions(encoder, captions),
            lambda: encode_captions(model, processor, captions, BATCH, progress=False),
        ),
    }
    lines = [
        "| whole set | plain, per s | `encoding.py`, per s | ratio | largest difference |",
        "|---|---|---|---|---|",
    ]
    for name, (count, plain, fast) in ways.items():
        seconds: dict[Callable[[], Any], float] = {}
        difference = (plain() - fast()).abs().max().item()  # both have worked before they are timed
        for _ in range(rounds):
            for way in (plain, fast):
                start = time.perf_counter()
                way()
                seconds[way] = min(time.perf_counter() - start, seconds.get(way, float("inf")))
        before, now = count / seconds[plain], count / seconds[fast]
        lines.append(f"| {name} | {before:.0f} | {now:.0f} | {now / before:.2f} | {difference:.0e} |")
    return "\n".join(lines)
