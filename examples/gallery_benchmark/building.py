"""Times the making of a gallery: encoding beside the bare model, and writing, indexing and removing rows."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.models import Encoder
from modeling_gadms.gallery.rows import Rows

from .beside import camera
from .inputs import BLOCK, save_images

REPEATS = 3
MORE = 1000  # rows that are added and removed
_FACTS: dict[str, Any] = {"source": "", "sha256": "0" * 64, "phash": 0, "file_size": 0, "file_time": 0}
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def measure_rates(encoder: Encoder, images: list[Image.Image]) -> dict[str, float]:
    """Images a CPU second of the bare model on pixels that are ready, and of a gallery on files, in turn; medians."""
    pixels = encoder.processor(images=images, return_tensors="pt")["pixel_values"].split(32)
    encoder.pixels(pixels[0])
    bare, built = [], []
    with tempfile.TemporaryDirectory() as folder:
        save_images(images, Path(folder, "images"))
        for number in range(REPEATS):
            start = time.process_time()
            for batch in pixels:
                encoder.pixels(batch)
            bare.append(len(images) / (time.process_time() - start))
            gallery = Gallery.create(Path(folder, f"built{number}"), (encoder.model, encoder.processor))
            start = time.process_time()
            gallery.add(Path(folder, "images"))
            built.append(len(images) / (time.process_time() - start))
    return {"bare rate": statistics.median(bare), "rate": statistics.median(built)}


def fill(rows: Rows, vectors: np.ndarray, name: str = "row") -> None:
    """Rows with a column `camera` from 0 to 99; the ids are evenly spread, as those of images are."""
    rows.add_columns({"camera": "number"})
    for first in tqdm(range(0, len(vectors), BLOCK), desc="Writing rows", leave=False, disable=None):
        numbers = torch.arange(first, min(first + BLOCK, len(vectors)))
        records = [
            {"id": f"{number * _SPREAD % 2**64:016x}{name:>16}", "uri": str(number), "camera": value, **_FACTS}
            for number, value in zip(numbers.tolist(), camera(numbers).tolist(), strict=True)
        ]
        rows.append(rows.as_table(records, vectors[first : first + BLOCK]))


def measure_building(folder: str, vectors: np.ndarray, index: str) -> dict[str, float]:
    """Seconds to write and index the rows, and the size on disk."""
    start = time.perf_counter()
    rows = Rows.create(folder, "rows", vectors.shape[1], "float16")
    fill(rows, vectors)
    found = {"write_s": time.perf_counter() - start}
    start, cpu = time.perf_counter(), time.process_time()
    rows.tidy(index)
    found |= {"index_s": time.perf_counter() - start, "index_cpu_s": time.process_time() - cpu}
    found["indexed"] = (rows.index_facts() or {}).get("indexed", 0)
    found["disk_mb"] = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
    return found


def measure_changes(folder: str, vectors: np.ndarray) -> dict[str, float]:
    """Seconds to add rows, to remove them from the results, and to remove them from the disk."""
    rows, found = Rows(folder, "rows"), {}
    start = time.perf_counter()
    fill(rows, vectors, "more")
    found["add_s"] = time.perf_counter() - start
    start = time.perf_counter()
    rows.delete("`id` like '%more'")
    found["remove_s"] = time.perf_counter() - start
    start = time.perf_counter()
    rows.purge()
    found["purge_s"] = time.perf_counter() - start
    return found
