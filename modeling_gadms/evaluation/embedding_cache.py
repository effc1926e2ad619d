"""Embeddings kept on disk under the hashes of the model and the data they come from.

A file is read only if weights, configuration, processor, images, captions and person ids are unchanged to
the last bit; it is written whole or not at all. Beyond a size limit, the least recently used files are deleted.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import datasets
import torch
import torch.distributed as dist
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from dataset_webperson.files import replacing

from ..distributed_gadms import num_processes
from ..rows import captions_of, person_ids
from .encoding import RetrievalSet, caption_options, encode_retrieval_set, is_siglip
from .models import Retriever

DEFAULT_FOLDER = os.path.join(HF_HOME, "gadms-embeddings")
DEFAULT_LIMIT = 10.0  # GB; the three benchmarks' test sets take about 0.1 GB per model at 512 dimensions
Tensors = TypeVar("Tensors")
CACHED = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.safetensors")


def model_hash(model: Retriever, processor: ProcessorMixin) -> str:
    """32 hexadecimal digits of the weights, their dtype, the configuration and the files of the processor."""
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    if is_siglip(model.config):  # of whose captions the processor's files do not tell how they are prepared here
        digest.update(json.dumps(caption_options(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            if name == "tokenizer.json":  # it also records how the last call padded and truncated
                rules = json.loads(content)
                content = json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True).encode()
            digest.update(f"\0{name}\0".encode() + content)
    return digest.hexdigest()[:32]


def data_hash(dataset: datasets.Dataset, progress: bool = True) -> str:
    """32 hexadecimal digits of every image file's bytes, every caption and every person id, in order."""
    digest = hashlib.sha256()
    files = dataset.cast_column("image", datasets.Image(decode=False))
    persons = person_ids(dataset)
    bar = tqdm(files, desc="Hashing images", disable=not progress, leave=False)
    for row, person in zip(bar, persons, strict=True):
        content = row["image"]["bytes"]
        if content is None:
            try:
                with open(row["image"]["path"], "rb") as file:
                    content = file.read()
            except OSError as error:
                raise ValueError(
                    f"image {row['image_path']}: cannot be read ({error}); replace the file, or leave the row out"
                ) from error
        head = json.dumps([row["image_path"], person, captions_of(row), len(content)])
        digest.update(head.encode() + b"\0")
        digest.update(content)
    return digest.hexdigest()[:32]


def cached_retrieval_set(
    model: Retriever,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    folder: str = DEFAULT_FOLDER,
    *,
    limit: float = DEFAULT_LIMIT,
    batch_size: int = 64,
    progress: bool = True,
    num_workers: int = 0,
) -> tuple[RetrievalSet, dict]:
    """[`encode_retrieval_set`], read from `folder` if an earlier call left its result there.

    Args:
        limit (`float`): GB (10**9 bytes) that the embeddings in `folder` may take; the least recently used
            are deleted. The embeddings of this call stay, even if they alone exceed the limit.

    Returns:
        `(RetrievalSet, {"model_hash": ..., "data_hash": ..., "file": ..., "was_cached": ...})`, the same in every
        process.

    Raises:
        ValueError: `limit` is negative or NaN; also the errors of `encode_retrieval_set`.
    """
    place = cache_place(model, processor, dataset, folder, progress)
    encoded, was_cached = cached(
        RetrievalSet,
        place["file"],
        lambda: encode_retrieval_set(model, processor, dataset, batch_size, progress, num_workers),
        limit,
    )
    return encoded, {**place, "was_cached": was_cached}


def cache_place(
    model: Retriever, processor: ProcessorMixin, dataset: datasets.Dataset, folder: str, progress: bool = True
) -> dict[str, str]:
    """The `file` in `folder` for what a model makes of a data set, with its `model_hash` and `data_hash`."""
    places: list[dict[str, str]] = [{}]  # known to the first process, then sent to all
    if _is_main():
        keys = {"model_hash": model_hash(model, processor), "data_hash": data_hash(dataset, progress)}
        places = [{**keys, "file": os.path.join(folder, "{model_hash}-{data_hash}.safetensors".format(**keys))}]
    if num_processes() > 1:
        dist.broadcast_object_list(places)
    return places[0]


def cached(kind: type[Tensors], file: str, make: Callable[[], Tensors], limit: float) -> tuple[Tensors, bool]:
    """What `make` gives in every process, kept in `file`, or what an earlier call left there; and which of both.

    Args:
        kind (`type`): a dataclass of nothing but tensors.
        limit (`float`): GB that what is kept in the folder of `file` may take, as in [`cached_retrieval_set`].

    Raises:
        ValueError: `limit` is negative or NaN.
    """
    folder = os.path.dirname(file)
    if not limit >= 0:
        raise ValueError(f"{folder}: the limit for cached embeddings must be 0 GB or more, not {limit}")
    found: list[Any] = [_read(kind, file) if _is_main() else None]
    if num_processes() > 1:
        dist.broadcast_object_list(found)
    was_cached = found[0] is not None
    result: Tensors = found[0] if was_cached else make()
    if _is_main():
        if not was_cached:
            with replacing(file) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in vars(result).items()}, temporary)
        with contextlib.suppress(FileNotFoundError, PermissionError):  # deleted by another process, or read-only
            os.utime(file)  # the time of last use: many file systems do not record reads
        delete_least_recent(folder, limit, keep=file)
    return result, was_cached


def delete_least_recent(folder: str, limit: float, keep: str) -> None:
    """Delete the least recently used embeddings in `folder` until the rest take at most `limit` GB.

    A process that is reading a deleted file is not disturbed. Files with other names, and `keep`, stay.
    """
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process deletes here too
            if CACHED.fullmatch(entry.name):
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit * 1e9:
            break
        if os.path.basename(path) != os.path.basename(keep):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.remove(path)
            total -= size


def _is_main() -> bool:
    return num_processes() == 1 or dist.get_rank() == 0


def _read(kind: type[Tensors], file: str) -> Tensors | None:
    """Read the file; `None` if it is missing or damaged, in which case the caller writes it again."""
    try:
        return kind(**load_file(file))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None
