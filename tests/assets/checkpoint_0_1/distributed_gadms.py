"""What one process must know of the others to train on their joint batch."""

import torch
import torch.distributed as dist


def num_processes() -> int:
    """Processes that share the batch; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherWithGradient(torch.autograd.Function):
    """`all_gather` whose backward sums the gradients of all processes; torch's own changes its name too often."""

    @staticmethod
    def forward(ctx, tensor):
        gathered = [torch.empty_like(tensor) for _ in range(num_processes())]
        dist.all_gather(gathered, tensor)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[dist.get_rank()]


def gather_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate `(N, ...)` tensors of equal shape from all processes, in the order of their ranks.

    The gradient of each process's slice is the sum over processes of what they computed for it. So when every process
    computes the *whole* loss of the joint batch, and the gradients of parameters are then averaged over processes, as
    `DistributedDataParallel` does, the result is exactly the gradient of one process with the joint batch.
    """
    return tensor if num_processes() == 1 else _GatherWithGradient.apply(tensor.contiguous())


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Mean over processes of a scalar; float32, without gradient."""
    value = value.detach().float().clone()
    if num_processes() > 1:
        dist.all_reduce(value)
    return value / num_processes()
