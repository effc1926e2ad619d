"""A device that no machine has: as with a GPU, what lies on it cannot be mixed with what lies in memory."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "mps"  # a device that torch knows by name, and that needs nothing of its own in the code
OF_NO_PLACE = torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type


class Elsewhere(torch.Tensor):
    """A tensor that counts as on the other device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # the mode does it


class OtherDevice(TorchFunctionMode):
    """Within, `.to("mps")` works anywhere, and tensors of two devices in one operation are refused.

    As on a GPU, numbers without a dimension may come from memory, and so may what indexes a tensor.
    """

    def __enter__(self) -> "OtherDevice":
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in OF_NO_PLACE:
            return func(*args, **kwargs)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        there = [one for one in tensors if isinstance(one, Elsewhere)]
        if func == torch.Tensor.device.__get__ and there:
            return torch.device(NAME)
        if func is torch.Tensor.__deepcopy__ and there:
            return _copied(*args)
        if func is torch.Tensor.numpy and there:
            raise TypeError("numpy reads memory, not the other device")
        asked = [one for one in (*args[1:], *kwargs.values()) if _is_place(one)]
        if func is torch.Tensor.cpu or asked == [torch.device("cpu")]:
            there = []
        elif asked:
            there = tensors or [None]
        elif there and func not in (torch.Tensor.__getitem__, torch.Tensor.to):
            if any(one.dim() and not isinstance(one, Elsewhere) for one in tensors):
                raise RuntimeError(f"{func.__name__}: tensors of two devices")
        memory = torch.device("cpu")
        args, kwargs = tree_map(lambda one: memory if _is_place(one) else one, (args, dict(kwargs)))
        found = func(*args, **kwargs)
        kind = Elsewhere if there else torch.Tensor
        return tree_map(lambda one: _of_kind(one, kind), found)


def _copied(one: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    if id(one) not in memo:
        memo[id(one)] = one.detach().clone().as_subclass(Elsewhere).requires_grad_(one.requires_grad)
        memo[id(one)]._is_param = isinstance(one, torch.nn.Parameter)  # by this torch knows those of other kinds
    return memo[id(one)]


def _is_place(one: Any) -> bool:
    return isinstance(one, torch.device) or (isinstance(one, str) and one in ("cpu", NAME))


def _of_kind(one: Any, kind: type) -> Any:
    if not isinstance(one, torch.Tensor) or isinstance(one, kind) and kind is not torch.Tensor:
        return one
    if kind is torch.Tensor and not isinstance(one, Elsewhere):
        return one  # a parameter in memory stays one
    return one.detach().as_subclass(kind) if isinstance(one, torch.nn.Parameter) else one.as_subclass(kind)
