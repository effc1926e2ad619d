"""Patch evidence kept in a file, so that a broken run need not learn it again."""

import os

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dataset_webperson import DataError
from dataset_webperson.files import replacing

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from .patch_evidence import PatchEvidence, train_patch_evidence


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
    evidence = train_patch_evidence(
        model,
        processor,
        rows,
        steps,
        tower_learning_rate,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
    )
    with replacing(file) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in evidence.state_dict().items()}, temporary)
    return evidence


def load_evidence(model: GADMSModel, file: str) -> PatchEvidence:
    """Patch evidence from its safetensors file, on the model's device.

    Raises:
        DataError: the file is broken, or of another model.
    """
    evidence = PatchEvidence(model)
    try:
        found = load_file(file)
        evidence.reference_keys = torch.empty_like(found["reference_keys"])
        evidence.load_state_dict(found)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{file}: broken, or not the patch evidence of this model; delete it to learn again"
        ) from error
    return evidence.to(next(model.parameters()).device).eval()
