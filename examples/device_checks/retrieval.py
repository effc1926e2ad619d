"""Rates of encoding and ranking on a device."""

import time
from collections.abc import Callable
from typing import Any

import datasets
import torch

from modeling_gadms import GADMSConfig
from modeling_gadms.evaluation.encoding import embed_images, encode_captions, encode_images
from modeling_gadms.person_retrieval.ranking import rank_both_ways, retrieval_metrics, summarize_ranks

from .loading import processor_for, with_vocabulary
from .steps import wait

MATCHES, NOISE = 20, 2.5  # as in ranking_benchmark


def encoding_rates(
    device: torch.device, config: GADMSConfig, rows: datasets.Dataset, batch_size: int, batches: int, workers: int
) -> list[dict[str, Any]]:
    """Images and captions per second, without gradients: on pixels that are ready, and from drawings."""
    processor = processor_for(config)
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = with_vocabulary(config, processor).gadms.to(device, half).eval()
    pixels = torch.randn(batch_size, 3, *config.vision_config.image_size)
    texts_of_rows = rows["caption1"]
    # different ones, for equal captions are encoded once
    captions = [f"{texts_of_rows[number % len(rows)]} {number}" for number in range(batch_size * batches)]

    def ready() -> int:
        with torch.no_grad():
            for _ in range(batches):
                embed_images(model, {"pixel_values": pixels})
        return batch_size * batches

    def drawings() -> int:
        encode_images(model, processor, rows, batch_size, progress=False, num_workers=workers)
        return len(rows)

    def texts() -> int:
        encode_captions(model, processor, captions, batch_size, progress=False)
        return len(captions)

    named = {"images, pixels ready": ready, "images, drawings": drawings, "captions": texts}
    return [{"encoded": name, "per second": round(rate_of(device, work), 1)} for name, work in named.items()]


def rate_of(device: torch.device, work: Callable[[], int]) -> float:
    """Items per second of the second call; the first warms up."""
    work()
    wait(device)
    start = time.perf_counter()
    count = work()
    wait(device)
    return count / (time.perf_counter() - start)


def ranking_seconds(device: torch.device, count: int, dimension: int, repeats: int = 3) -> list[dict[str, Any]]:
    """The best time of ranking `count` captions and as many images, and whether a part ranks as on the CPU."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(count) % max(count // MATCHES, 1)
    centres = torch.randn(int(ids.max()) + 1, dimension, generator=generator)
    sides = [centres[ids] + NOISE * torch.randn(count, dimension, generator=generator) for _ in range(2)]
    queries, gallery = (side.to(device) for side in sides)
    few = slice(0, min(count, 2000))
    here = retrieval_metrics(sides[0][few], sides[1][few], ids[few], ids[few])
    there = retrieval_metrics(queries[few], gallery[few], ids[few], ids[few])
    rows = []
    for name, work in (
        ("text to image", lambda: [retrieval_metrics(queries, gallery, ids, ids)]),
        ("both ways", lambda: [summarize_ranks(ranks) for ranks in rank_both_ways(queries, gallery, ids, ids)]),
    ):
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            metrics = work()
            seconds.append(time.perf_counter() - start)
        row = {"ranking": f"{name}, {count:,} x {count:,}", "seconds": round(min(seconds), 3)}
        rows.append({**row, "R@1": round(metrics[0]["R@1"], 3), "as on the CPU": here == there})
    return rows
