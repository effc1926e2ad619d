"""What was learnt about false words kept in a file, so that a broken run need not learn it again."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dataset_webperson import DataError
from dataset_webperson.files import replacing

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from .patch_evidence import PatchEvidence, train_patch_evidence
from .value_reader import ValueReader, train_value_reader
from .word_families import Family

Learnt = TypeVar("Learnt", bound=nn.Module)


def kept_evidence(
    model: GADMSModel,
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    file: str,
    *,
    steps: int,
    tower_learning_rate: float,
    batch_size: int,
    seed: int,
    num_workers: int,
) -> PatchEvidence:
    """Patch evidence on the model's device: from `file` if an earlier run has left it there, else learnt and kept.

    Args:
        model ([`GADMSModel`]): the image tower starts from its own.
        processor ([`GADMSProcessor`]): its processor.
        rows (`datasets.Dataset`): captioned images.
        file (`str`): safetensors.
        steps, tower_learning_rate, batch_size, seed, num_workers: as in
            [`~modeling_gadms.noise.patch_evidence.train_patch_evidence`].

    Raises:
        DataError: the file is broken, or of another model.
    """
    if os.path.exists(file):
        return load_evidence(model, file)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "num_workers": num_workers}
    return _kept(file, train_patch_evidence(model, processor, rows, steps, tower_learning_rate, **options))


def kept_reader(
    model: GADMSModel,
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    families: Mapping[str, Family],
    file: str,
    *,
    steps: int,
    tower_learning_rate: float,
    batch_size: int,
    seed: int,
    num_workers: int,
) -> ValueReader:
    """A value reader of these families, kept as [`kept_evidence`] keeps patch evidence.

    Raises:
        DataError: the file is broken, or of another model or other families.
    """
    if os.path.exists(file):
        return _loaded(ValueReader(model, families), file, model)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "num_workers": num_workers}
    return _kept(file, train_value_reader(model, processor, rows, families, steps, tower_learning_rate, **options))


def load_evidence(model: GADMSModel, file: str) -> PatchEvidence:
    """Patch evidence from its safetensors file, on the model's device.

    Raises:
        DataError: the file is broken, or of another model.
    """
    return _loaded(PatchEvidence(model), file, model)


def _kept(file: str, learnt: Learnt) -> Learnt:
    with replacing(file) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in learnt.state_dict().items()}, temporary)
    return learnt


def _loaded(empty: Learnt, file: str, model: GADMSModel) -> Learnt:
    try:
        found = load_file(file)
        if isinstance(empty, PatchEvidence):
            empty.reference_keys = torch.empty_like(found["reference_keys"])
        empty.load_state_dict(found)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{file}: broken, or not learnt from this model and for these words; delete it to learn again"
        ) from error
    return empty.to(next(model.parameters()).device).eval()
