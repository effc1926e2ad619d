"""Rates of the ways from JPEG files to pixels at training size, and how far the pixels are from Pillow's."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from loading_benchmark.pictures import picture
from PIL import Image

from modeling_gadms.training.image_decoding import (
    DEVICE,
    PILLOW,
    TORCH,
    decoded,
    decoded_on_device,
    has_torchcodec,
    resized,
)

from .retrieval import rate_of

LARGEST, MEAN = 6, 0.3  # of 255: what the pages say of smooth pictures


def decoding_rates(device: torch.device, size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """A row for each way that there is here: images per second, of one thread but for the device's, and differences.

    Args:
        device: the device to check, by which images are decoded too where torchcodec is installed.
        size: height and width of training.
        count: pictures, made up and of the size of person crops.
    """
    files = jpegs(count)
    names = [str(number) for number in range(count)]
    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        PILLOW: lambda: [by_pillow(data, size) for data in files],
        TORCH: lambda: [resized(decoded(data, name), size) for data, name in zip(files, names, strict=True)],
    }
    if device.type == "cuda" and has_torchcodec():
        ways[DEVICE] = lambda: list(decoded_on_device(list(files), names, size, device))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a loader
    try:
        return [row_of(device, way, work, ways[PILLOW]()) for way, work in ways.items()]
    finally:
        torch.set_num_threads(threads)


def row_of(
    device: torch.device, way: str, work: Callable[[], list[torch.Tensor]], expected: list[torch.Tensor]
) -> dict[str, Any]:
    rate = rate_of(device, lambda: len(work()))
    differences = [
        (found.cpu().float() - by_measure.float()).abs() for found, by_measure in zip(work(), expected, strict=True)
    ]
    mean = max(difference.mean().item() for difference in differences)
    largest = max(difference.max().item() for difference in differences)
    return {
        "decoded and resized by": way,
        "JPEG by": "torchcodec" if way != PILLOW and has_torchcodec() else "Pillow",
        "images/s": round(rate, 1),
        "mean difference of 255": round(mean, 3),
        "largest": int(largest),
        "within": mean <= MEAN and largest <= LARGEST,
    }


def by_pillow(data: bytes, size: tuple[int, int]) -> torch.Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def jpegs(count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        picture(generator).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files
