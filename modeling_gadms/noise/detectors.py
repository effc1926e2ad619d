"""Methods that find false words in captions: a number for each word, high where it is called false."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns
from .patch_evidence import PatchEvidence
from .repaired_captions import POSTERIOR, add_posteriors, calibrate_families
from .word_families import families_for

WITH_EVIDENCE = "evidence", "posterior"
METHODS = "random", "cosine", "gass", "masked", *WITH_EVIDENCE
TokenScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # pixels, ids -> (B, T), high where trusted


def word_suspicions(
    method: str,
    model: GADMSModel,
    processor: GADMSProcessor,
    train: datasets.Dataset,
    test: datasets.Dataset,
    evidence: PatchEvidence | None = None,
    batch_size: int = 100,
) -> list[list[float]]:
    """A score for each listed word of the test captions: image after image, and of each image `caption1`, `caption2`.

    A word's score is the mean of its tokens'. A word that the tower's length cuts off has the mean of all words.

    Args:
        method (`str`): one of `METHODS`.
        model ([`GADMSModel`]): in evaluation mode.
        processor ([`GADMSProcessor`]): its processor.
        train (`datasets.Dataset`): captioned images that `posterior` is calibrated on; their truth is not read.
        test (`datasets.Dataset`): with columns `caption1_words`, ...
        evidence ([`PatchEvidence`], *optional*): for the methods `evidence` and `posterior`, learnt from `train`.
        batch_size (`int`): test images at a time.
    """
    if method in WITH_EVIDENCE:
        if evidence is None:
            raise ValueError(f"{method} needs patch evidence")
        if method == "posterior":
            return _filled(_posteriors(evidence, processor, train, test))
        scores: TokenScores = _evidence_scores(evidence)
    else:
        scores = {"cosine": _cosines, "gass": _gass, "masked": _masked, "random": _random}[method](model)
    found: list[list[float | None]] = []
    for first in range(0, len(test), batch_size):
        part = test[first : first + batch_size]
        pixels = processor(images=part["image"], return_tensors="pt")["pixel_values"]
        by_column = [_of_words(scores, pixels, part, name, processor) for name in caption_columns(part)]
        found += [one for row in zip(*by_column, strict=True) for one in row]
    return _filled(found)


@torch.no_grad()
def _of_words(
    scores: TokenScores, pixels: torch.Tensor, part: dict[str, Any], name: str, processor: GADMSProcessor
) -> list[list[float | None]]:
    options = {"return_offsets_mapping": True, "padding": True, "truncation": True, "return_tensors": "pt"}
    encoded = processor.tokenizer(part[name], **options)
    trusted = scores(pixels, encoded["input_ids"])
    found: list[list[float | None]] = []
    for row, offsets, words in zip(trusted, encoded["offset_mapping"], part[f"{name}_words"], strict=True):
        starts, ends = offsets.unbind(dim=-1)
        own: list[float | None] = []
        for word in words:
            inside = (starts >= word["start"]) & (starts < word["end"]) & (ends > starts)
            own.append(-row[inside].mean().item() if inside.any() else None)
        found.append(own)
    return found


def _posteriors(
    evidence: PatchEvidence, processor: GADMSProcessor, train: datasets.Dataset, test: datasets.Dataset
) -> list[list[float | None]]:
    calibrated = calibrate_families(evidence, processor, train, families_for(train.column_names))
    found = add_posteriors(evidence, processor, test, calibrated).remove_columns("image")
    result: list[list[float | None]] = []
    for row in found:
        for name in caption_columns(test.column_names):
            true = {one["start"]: one["probabilities"][0] for one in row[f"{name}_{POSTERIOR}"]}
            result.append([1 - true[w["start"]] if w["start"] in true else None for w in row[f"{name}_words"]])
    return result


def _filled(found: Sequence[Sequence[float | None]]) -> list[list[float]]:
    known = [score for one in found for score in one if score is not None]
    mean = float(np.mean(known)) if known else 0.0
    return [[mean if score is None else score for score in one] for one in found]


def _random(model: GADMSModel) -> TokenScores:
    def scores(pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(input_ids.numpy().tobytes()))
        return torch.rand(input_ids.shape, generator=generator)

    return scores


def _cosines(model: GADMSModel) -> TokenScores:
    def scores(pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        image = F.normalize(model.get_image_features(pixel_values).pooler_output, dim=-1)
        states = model.get_text_features(input_ids).last_hidden_state
        return (F.normalize(model.text_projection(states), dim=-1) @ image[..., None])[..., 0]

    return scores


def _gass(model: GADMSModel) -> TokenScores:
    return lambda pixel_values, input_ids: model.token_scores(pixel_values, input_ids)


def _masked(model: GADMSModel) -> TokenScores:
    return lambda pixel_values, input_ids: model.word_contributions(pixel_values, input_ids)


def _evidence_scores(evidence: PatchEvidence) -> TokenScores:
    return lambda pixel_values, input_ids: evidence.score(evidence.keys(pixel_values), input_ids)
