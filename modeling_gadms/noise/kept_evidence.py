"""What was learnt about false words kept in a file, so that a broken run need not learn it again."""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dataset_webperson import DataError
from dataset_webperson.files import replacing

from ..modeling_gadms import GADMSModel
from .image_tower import OnImageTower
from .patch_evidence import PatchEvidence
from .value_reader import ValueReader
from .word_families import Family

VALUES = "values"  # of the file's metadata: the values of each family, in their order
Learnt = TypeVar("Learnt", bound=OnImageTower)


def kept(file: str, model: GADMSModel, empty: Callable[[], Learnt], learn: Callable[[], Learnt]) -> Learnt:
    """What is learnt on a model's image tower: from `file` if an earlier run has left it there, else learnt and kept.

    Args:
        file (`str`): safetensors.
        model ([`GADMSModel`]): what is loaded comes on its device.
        empty (`Callable`): makes the module that the file fills.
        learn (`Callable`): makes it anew.

    Raises:
        DataError: the file is broken, or of another model or other words.
    """
    if os.path.exists(file):
        return _filled(empty(), file, model)
    learnt = learn()
    with replacing(file) as temporary:
        weights = {name: value.cpu().contiguous() for name, value in learnt.state_dict().items()}
        save_file(weights, temporary, metadata=_told(learnt))
    return learnt


def load_evidence(model: GADMSModel, file: str) -> PatchEvidence:
    """Patch evidence from its safetensors file, on the model's device.

    Raises:
        DataError: the file is broken, or of another model.
    """
    return _filled(PatchEvidence(model), file, model)


def load_reader(model: GADMSModel, families: Mapping[str, Family], file: str) -> ValueReader:
    """A reader of values from its safetensors file, on the model's device.

    Raises:
        DataError: there is no such file, it is broken, or of another model or other families.
    """
    if not os.path.exists(file):
        raise DataError(f"{file}: no such reader of values; `examples/repair_captions.py --mode repair` learns one")
    return _filled(ValueReader(model, families), file, model)


def _told(module: OnImageTower) -> dict[str, str]:
    """What the shapes of the weights do not tell: which values a reader's answers are of."""
    if not isinstance(module, ValueReader):
        return {}
    return {VALUES: json.dumps({name: list(family.values) for name, family in module.families.items()})}


def _refuse_other_values(module: OnImageTower, file: str) -> None:
    with safe_open(file, "pt") as opened:
        learnt = (opened.metadata() or {}).get(VALUES)
    given = _told(module).get(VALUES)
    if learnt is None or given is None or learnt == given:
        return
    before, now = (
        [f"the family {name} of {', '.join(values)}" for name, values in json.loads(one).items()]
        for one in (learnt, given)
    )
    one, other = next(pair for pair in itertools.zip_longest(before, now, fillvalue="nothing") if pair[0] != pair[1])
    raise DataError(
        f"{file}: learnt for {one}, in whose place {other} is given; give the families that it was learnt for, in "
        "their order, or learn again"
    )


def _filled(module: Learnt, file: str, model: GADMSModel) -> Learnt:
    try:
        _refuse_other_values(module, file)
        found = load_file(file)
        if isinstance(module, PatchEvidence):
            module.reference_keys = torch.empty_like(found["reference_keys"])
        module.load_state_dict(found)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{file}: broken, or not learnt from this model and for these words; delete it to learn again"
        ) from error
    return module.to(next(model.parameters()).device).eval()
