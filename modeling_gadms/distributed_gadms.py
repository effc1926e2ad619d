"""Communication between processes that train on one joint batch."""

from typing import Any

import torch
import torch.distributed as dist


def num_processes() -> int:
    """Processes that share the batch; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherWithGradient(torch.autograd.Function):
    """`all_gather` whose backward sums the gradients of all processes; torch's own has changed its name too often."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(num_processes())]
        dist.all_gather(gathered, tensor)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[dist.get_rank()]


def gather_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate `(N, ...)` tensors of equal shape from all processes, in the order of their ranks.

    Each process's slice receives the sum of the gradients that all processes computed for it. So if every process
    computes the *whole* loss of the joint batch, and `DistributedDataParallel` then averages the gradients of the
    parameters over processes, the result is exactly the gradient of one process that holds the joint batch.
    """
    return tensor if num_processes() == 1 else _GatherWithGradient.apply(tensor.contiguous())


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar over processes; float32, without gradient."""
    value = value.detach().float().clone()
    if num_processes() > 1:
        dist.all_reduce(value)
    return value / num_processes()
