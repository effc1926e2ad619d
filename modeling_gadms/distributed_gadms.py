"""Communication between processes that train on one joint batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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
        summed = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()
        dist.all_reduce(summed)
        return summed.chunk(num_processes())[dist.get_rank()].to(gradient.dtype)


def gather_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate `(N, ...)` tensors of equal shape from all processes, in the order of their ranks.

    Each process's slice receives the sum of the gradients that all processes computed for it. So if every process
    computes the *whole* loss of the joint batch, and `DistributedDataParallel` then averages the gradients of the
    parameters over processes, the result is exactly the gradient of one process that holds the joint batch.

    Tensors travel in their own dtype. Under bfloat16 autocast that is what the projections give, two bytes a number,
    and nothing is lost: similarities are computed from the same numbers on one process. Gradients, of that dtype, are
    summed in float32 and rounded once, an error of at most 2^-9 of each, as in a batch on one process.
    """
    return tensor if num_processes() == 1 else _GatherWithGradient.apply(tensor.contiguous())


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar over processes; float32, without gradient."""
    value = value.detach().float().clone()
    if num_processes() > 1:
        dist.all_reduce(value)
    return value / num_processes()


@contextmanager
def undivided(module: nn.Module) -> Iterator[None]:
    """Inside, layers that FSDP2 divides over processes are whole in each, also where their parts are called alone.

    All processes enter together. Without such layers nothing changes.
    """
    divided = _divided(module)
    for part in divided:
        part.unshard()
    try:
        yield
    finally:
        for part in divided:
            part.reshard()


def whole_state(module: nn.Module) -> dict[str, torch.Tensor] | None:
    """The state of a module with layers that FSDP2 divides, put together on the CPU; `None` without such layers.

    All processes enter together.
    """
    if not _divided(module):
        return None
    state = module.state_dict()
    return {name: (part.full_tensor() if hasattr(part, "full_tensor") else part).cpu() for name, part in state.items()}


def _divided(module: nn.Module) -> list[Any]:
    if num_processes() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule  # here, since a build of torch may lack it

    return [part for part in module.modules() if isinstance(part, FSDPModule)]
