"""Embeddings kept on disk under the hashes of the model and of the data that gave them.

A file is read only if weights, configuration, processor, images, captions and person ids are all as they were, down
to the last bit; it is written whole or not at all.
"""

import hashlib
import json
import os
import tempfile

import datasets
import torch
import torch.distributed as dist
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from dataset_webperson.whole_files import replacing

from .distributed_gadms import num_processes
from .encoding import RetrievalSet, captions_of, encode_retrieval_set, person_ids

DEFAULT_FOLDER = os.path.join(HF_HOME, "gadms-embeddings")


def model_hash(model, processor) -> str:
    """32 hexadecimal digits of the weights, their dtype, the configuration and the files of the processor."""
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            if name == "tokenizer.json":  # how the last call happened to pad and cut is written there too
                rules = json.loads(content)
                content = json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True).encode()
            digest.update(f"\0{name}\0".encode() + content)
    return digest.hexdigest()[:32]


def data_hash(dataset, progress=True) -> str:
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
                    f"image {row['image_path']}: cannot be read ({error}). Replace the file, or leave the row out"
                ) from error
        head = json.dumps([row["image_path"], person, captions_of(row), len(content)])
        digest.update(head.encode() + b"\0")
        digest.update(content)
    return digest.hexdigest()[:32]


def cached_retrieval_set(
    model, processor, dataset, folder=DEFAULT_FOLDER, *, batch_size=64, progress=True, num_workers=0
) -> tuple[RetrievalSet, dict]:
    """[`encode_retrieval_set`], or what an earlier call of it left in `folder`.

    Returns:
        `(RetrievalSet, {"model_hash": ..., "data_hash": ..., "file": ..., "was_cached": ...})`, the same in every
        process.
    """
    found = [None, None]
    if _is_main():
        keys = {"model_hash": model_hash(model, processor), "data_hash": data_hash(dataset, progress)}
        file = os.path.join(folder, f"{keys['model_hash']}-{keys['data_hash']}.safetensors")
        encoded = _read(file)
        found = [encoded, {**keys, "file": file, "was_cached": encoded is not None}]
    if num_processes() > 1:
        dist.broadcast_object_list(found)
    encoded, note = found
    if encoded is None:
        encoded = encode_retrieval_set(model, processor, dataset, batch_size, progress, num_workers)
        if _is_main():
            with replacing(note["file"]) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in vars(encoded).items()}, temporary)
    return encoded, note


def _is_main() -> bool:
    return num_processes() == 1 or dist.get_rank() == 0


def _read(file: str) -> RetrievalSet | None:
    """What the file holds; nothing if there is none or it is damaged, in which case it is written anew."""
    try:
        return RetrievalSet(**load_file(file))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None
