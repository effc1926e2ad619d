"""Reads the tensors of a PyTorch checkpoint without running any code the file contains."""

import os
import pickle  # for the name of an exception alone: nothing is ever unpickled here
import re
import struct
import warnings
import zipfile
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

STATE_DICT_KEYS = ("model", "state_dict")
EXPECTED = "a state dict was expected, alone or under 'model' or 'state_dict'"

# what torch raises, according to the byte at which a file ends
CUT_SHORT = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    AttributeError,
    UnicodeDecodeError,
    struct.error,
    zipfile.BadZipFile,
)


def read_checkpoint(path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights in a `.pt`, `.pth`, `.bin` or `.safetensors` file, on the CPU, as they were saved.

    A checkpoint is read with `weights_only=True`: tensors and plain containers, no code. A TorchScript archive, as
    OpenAI's own CLIP files are, is a program and is read by `torch.jit.load`, which builds it without calling it; the
    one part that would run on loading, a `__setstate__` written by its author, is refused.

    Args:
        path (`str`): a safetensors file, a state dict, a dict that holds one under `model` or `state_dict`, or a
            TorchScript archive.

    Returns:
        `dict[str, torch.Tensor]`: weights by name, without the `module.` of data-parallel training.
        `list[str]`: names of the entries beside the weights (optimizer, epoch, ...).

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: the file is cut short, is no checkpoint, holds no weights, or needs arbitrary pickle.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{path} is a folder, not a checkpoint file; a model folder is loaded with from_pretrained, and turned "
            "into the released layout with --reverse"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        if os.path.splitext(path)[1] == ".safetensors":
            return load_file(path), []
        content = _read_torchscript(path) if _is_torchscript(path) else _read_weights_only(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short, or no safetensors file ({error!s:.80}): download it again") from None
    except CUT_SHORT as error:
        if isinstance(error, pickle.UnpicklingError):
            reason = "not in its format"  # torch's own message advises reading the file unsafely
        else:
            reason = str(error).strip().split(". ")[0].split("\n")[0] or "it ends too early"
        raise ValueError(
            f"{path} is not a PyTorch checkpoint, or is cut short ({reason}): download or copy it again and compare "
            "its sha256"
        ) from None

    beside: list[str] = []
    if isinstance(content, dict) and (key := next((key for key in STATE_DICT_KEYS if key in content), None)):
        beside = [str(name) for name in content if name != key]
        content = content[key]
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {found}, not weights by name: {EXPECTED}")
    if strange := [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(
            f"{path}: {len(strange)} of {len(content)} entries are not tensors ({', '.join(strange[:3])}): {EXPECTED}"
        )
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content), beside


def _read_weights_only(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: to be read it needs arbitrary pickle ({named[1]}), which may run any code on "
                "this machine. Cure: where it was made, save the tensors alone: "
                "torch.save({'model': model.state_dict()}, FILE)"
            ) from None
        raise


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: str) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".py") and b"__setstate__" in archive.read(entry):
                raise ValueError(
                    f"{path} is refused: this TorchScript archive brings code that runs on loading (__setstate__ in "
                    f"{entry.filename}). Cure: where it was made, save its state_dict() with torch.save"
                )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
