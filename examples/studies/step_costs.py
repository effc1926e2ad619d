"""What a step costs: floating-point operations, memory and time."""

import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm


def _attention(query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: tuple, query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch's counter passes over the CPU's kernels of fused attention, and counts those of GPUs by these formulas
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(step: Callable) -> tuple[int, int]:
    """Operations of matrix products, convolutions and attention, two for each product and its sum; of fused attention.

    Causal attention counts as if it were full, and the backward pass of fused attention with what it computes again.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    by_kernel = counter.get_flop_counts()["Global"]
    return sum(by_kernel.values()), sum(by_kernel.get(kernel, 0) for kernel in CPU_ATTENTION)


def peak_memory(step: Callable) -> int:
    """The most bytes of tensors alive at once among those that `step` allocates, as torch's CPU allocator reports."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def measure(
    model: torch.nn.Module, steps: dict[str, Callable], order: list[str], batch_size: int, reference: str
) -> dict[str, dict]:
    """The costs per sample of every step.

    Args:
        model (`torch.nn.Module`): whose gradients the steps fill.
        steps (`dict[str, Callable]`): functions without arguments.
        order (`list[str]`): steps to time one after the other, `reference` first, each at least once.
        batch_size (`int`): samples per step.
        reference (`str`): the step by whose latest time the others' are divided.

    Returns:
        `dict[str, dict]`: of each step `gflop`, `gflop_without_fused_attention` and `megabytes` (10^6 bytes), counted
        in a run of their own beforehand, and `seconds` and `ratio` of each time in `order`. Gradients of weights are
        there before memory is counted, so it is without them.
    """
    found = {name: {"seconds": [], "ratio": []} for name in steps}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for name, step in tqdm(steps.items(), desc="counted"):
        total, fused = (count / batch_size / 1e9 for count in count_flops(step))
        found[name] |= {"gflop": total, "gflop_without_fused_attention": total - fused}
        found[name]["megabytes"] = peak_memory(step) / batch_size / 1e6
    for name in tqdm(order, desc="timed"):
        model.zero_grad()
        start = time.perf_counter()
        steps[name]()
        found[name]["seconds"].append((time.perf_counter() - start) / batch_size)
        found[name]["ratio"].append(found[name]["seconds"][-1] / found[reference]["seconds"][-1])
    return found
