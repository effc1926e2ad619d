"""The score of captions in every way that gives it, beside a text pass: the token of EOS walks, or all tokens do.

The score needs a gradient at EOS in each of the last layers. The package lets EOS alone walk through them again, which
is little to compute, but in many small kernels. It can be compiled, or recorded as one CUDA graph; the whole captions
can be passed once, with gradients, and nothing walks (`folding.py`); or the last layer alone is scored.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from studies.training_steps import make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.token_scores_gadms import gradient_attention_scores

from .folding import folded_scores
from .numbers import SCORE_BOUNDS, relative
from .steps import wait

TEXT_PASS, WALK, LAST = "text pass, no gradient", "EOS walks", "EOS walks, last layer alone"
COMPILED, RECORDED, FOLDED = "EOS walks, compiled", "EOS walks, one CUDA graph", "whole captions, with gradients"
SAME = COMPILED, RECORDED, FOLDED  # give the walk's scores


def ways(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """The ways to score the captions of a batch, after a text pass; each without arguments."""
    text, projection = model.gadms.text_model, model.gadms.text_projection
    ids = batch["input_ids"]
    with torch.no_grad():
        images = model.gadms.get_image_features(batch["pixel_values"]).pooler_output

    def text_pass() -> torch.Tensor:
        with torch.no_grad():
            return model.gadms.project_text_tokens(ids)

    return {
        TEXT_PASS: text_pass,
        WALK: lambda: gradient_attention_scores(text, projection, images, ids),
        LAST: lambda: gradient_attention_scores(text, projection, images, ids, num_layers=1),
        FOLDED: lambda: folded_scores(text, projection, images, ids),
        COMPILED: lambda: gradient_attention_scores(text, projection, images, ids, compiler="inductor"),
    }


def score_seconds(
    device: torch.device,
    config: GADMSConfig,
    batch_size: int,
    length: int,
    repeats: int = 9,
    compiled: bool = True,
) -> list[dict[str, Any]]:
    """A row for each way: median time of a batch, in bfloat16 on a GPU, and how many operations torch is asked for.

    Args:
        device: the device to measure.
        config: of the model, whose weights are random; its text tower is causal.
        batch_size: captions at a time.
        length: tokens of every caption.
        repeats: timed rounds, in which the ways alternate.
        compiled: whether to compile, too.
    """
    torch.manual_seed(0)
    model = GADMSForPreTraining(config).to(device).train()
    batch = {name: tensor.to(device) for name, tensor in make_batch(config, [length] * batch_size).items()}
    low = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)
    with low:
        named = ways(model, batch)
        if not compiled:
            del named[COMPILED]
        operations = {name: counted(work) for name, work in named.items() if name != COMPILED}
        if device.type == "cuda":
            named[RECORDED] = recorded(named[WALK])
        found: dict[str, list[float]] = {name: [] for name in named}
        for repeat in range(repeats + 2):  # two rounds warm up
            for name, work in named.items():
                wait(device)
                start = time.perf_counter()
                work()
                wait(device)
                if repeat > 1:
                    found[name].append(time.perf_counter() - start)
        scores = {name: named[name]() for name in (WALK, *(name for name in SAME if name in named))}
    bound = SCORE_BOUNDS["bfloat16" if device.type == "cuda" else "float32"]
    base = statistics.median(found[WALK])
    rows = []
    for name, seconds in found.items():
        median = statistics.median(seconds)
        row = {"score": name, "ms": round(1000 * median, 2), "of the walk's time": round(median / base, 2)}
        row["operations"] = operations.get(name, "")
        if name in SAME:
            difference = relative(scores[name], scores[WALK])
            row |= {"difference": float(f"{difference:.2g}"), "within": difference <= bound}
        rows.append(row)
    return rows


class Counter(TorchDispatchMode):
    """Counts the operations that give new numbers: views of other tensors cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def counted(work: Callable[[], object]) -> int:
    with Counter() as counter:
        work()
    return counter.count


def recorded(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`work` as one CUDA graph: its kernels are started together, on the tensors that it was recorded with."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # not in the stream of all, as recording wants it
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replayed() -> torch.Tensor:
        graph.replay()
        return result

    return replayed
