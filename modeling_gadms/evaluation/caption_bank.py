"""Scores normalised by a bank of training captions, so that images which are near to everything are found less often.

What an image's nearest captions of the bank say about it is computed once per gallery and kept; a query then costs
its cosines alone. A bank holds captions of the training split, and none that the measured split has too.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from ..person_retrieval.ranking import QueryRanks
from .embedding_cache import cached
from .encoding import RetrievalSet, encode_captions
from .models import Retriever
from .rescoring import ScoreRows, average_phrasings, rank_scores

BLOCK = 1024  # captions of the bank at a time
NNN, INVERTED_SOFTMAX, QUERY_BANK = "nnn", "inverted-softmax", "query-bank"
BANK_SCORINGS = (NNN, INVERTED_SOFTMAX, QUERY_BANK)
PHRASINGS_NNN = "phrasings-nnn"  # of the mean over the phrasings of an image


@dataclass(frozen=True)
class BankSettings:
    """Constants of the three scorings; choose them on validation, never on test.

    Attributes:
        alpha (`float`): NNN: weight of the mean that is subtracted. 0.5 ranks as CSLS with the same bank does.
        neighbours (`int`): NNN: captions of the bank, nearest to an image, whose similarities are averaged.
        beta (`float`): inverse temperature of the inverted softmax, with and without the choice by query.

    Raises:
        ValueError: a constant is out of range.
    """

    alpha: float = 0.75  # this and the next from the middle of what validation chose in the study on drawings
    neighbours: int = 64
    beta: float = 20.0  # of QB-Norm

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"bank_alpha must be 0 or more; got {self.alpha}")
        if self.neighbours < 1:
            raise ValueError(f"bank_neighbours must be at least 1; got {self.neighbours}")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"bank_beta must be positive; got {self.beta}")

    def words(self, scoring: str, size: int) -> str:
        """How results name a scoring by a bank of `size` captions."""
        bank = f"bank of {size:,} training captions"
        if scoring == PHRASINGS_NNN:
            return f"mean over the phrasings of an image, {self.words(NNN, size)}"
        if scoring == NNN:
            return f"NNN, alpha={self.alpha:g}, k={min(self.neighbours, size)}, {bank}"
        name = "inverted softmax" if scoring == INVERTED_SOFTMAX else "QB-Norm (dynamic inverted softmax)"
        return f"{name}, beta={self.beta:g}, {bank}"


@dataclass(frozen=True)
class CaptionBank:
    """Captions of a training split, each once.

    Attributes:
        captions (`list[str]`): in the order of the split.
        shared (`int`): different captions left out because the measured split has them too.
        repeated (`int`): further occurrences of captions, counted once.
    """

    captions: list[str]
    shared: int
    repeated: int

    def refusal(self) -> str | None:
        """Why nothing can be normalised by this bank, in words; None where something can."""
        if self.captions:
            return None
        return "re-scoring by a bank needs training captions that are not measured on; the split train has none"

    def __str__(self) -> str:
        return (
            f"bank of {len(self.captions):,} training captions; {self.shared:,} that are measured on left out, "
            f"{self.repeated:,} repetitions counted once"
        )


def plain_words(caption: str) -> str:
    """A caption without differences of case and white space."""
    return " ".join(caption.split()).casefold()


def caption_bank(training: Iterable[str], measured: Iterable[str]) -> CaptionBank:
    """The captions of `training` that `measured` does not have, whatever their case and white space."""
    held_out = {plain_words(caption) for caption in measured}
    seen: set[str] = set()
    captions, repeated = [], 0
    for caption in training:
        words = plain_words(caption)
        if words in seen:
            repeated += 1
        elif words not in held_out:
            captions.append(caption)
        seen.add(words)
    return CaptionBank(captions, len(seen & held_out), repeated)


@dataclass
class GalleryBias:
    """What a bank says about each of `N` images of a gallery.

    Attributes:
        nearest (`torch.Tensor` of shape `(N,)`): float64, mean similarity of the captions nearest to the image.
        log_sum (`torch.Tensor` of shape `(N,)`): float64, log of the sum of `exp(beta * similarity)` over the bank.
        is_found (`torch.Tensor` of shape `(N,)`): bool, whether some caption of the bank has this image as its best.
    """

    nearest: torch.Tensor
    log_sum: torch.Tensor
    is_found: torch.Tensor


def gallery_bias(
    bank_embeds: torch.Tensor, gallery_embeds: torch.Tensor, settings: BankSettings, progress: bool = True
) -> GalleryBias:
    """Compare a gallery with a bank; memory grows with `N * (neighbours + 1024)`, not with the bank.

    Args:
        bank_embeds (`torch.Tensor` of shape `(B, D)`), gallery_embeds (`(N, D)`): unit norm.

    Raises:
        ValueError: the bank is empty.
    """
    if not len(bank_embeds):
        raise ValueError("the bank has no captions: there is nothing to normalise by")
    gallery = gallery_embeds.double()
    neighbours = min(settings.neighbours, len(bank_embeds))
    nearest = torch.empty(len(gallery), 0, dtype=torch.float64)
    log_sum = torch.full((len(gallery),), -torch.inf, dtype=torch.float64)
    is_found = torch.zeros(len(gallery), dtype=torch.bool)
    for block in tqdm(bank_embeds.split(BLOCK), desc="Bank", disable=not progress, leave=False):
        scores = gallery @ block.double().T
        is_found[scores.argmax(dim=0)] = True
        log_sum = torch.logaddexp(log_sum, (settings.beta * scores).logsumexp(dim=1))
        candidates = torch.cat([nearest, scores], dim=1)
        nearest = candidates.topk(min(neighbours, candidates.shape[1]), dim=1).values
    return GalleryBias(nearest.mean(dim=1), log_sum, is_found)


def cached_gallery_bias(
    model: Retriever,
    processor: ProcessorMixin,
    bank: CaptionBank,
    encoded: RetrievalSet,
    note: dict[str, Any],
    settings: BankSettings,
    *,
    limit: float,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[GalleryBias, bool]:
    """[`gallery_bias`] of an encoded set, and whether it was kept beside the set's embeddings by an earlier call.

    Args:
        encoded, note: what `embedding_cache.cached_retrieval_set` gave for the same model and processor.
        limit (`float`): GB that all that is kept may take.
    """

    def compare() -> GalleryBias:
        embeds = encode_captions(model, processor, bank.captions, batch_size, progress)
        return gallery_bias(embeds, encoded.image_embeds, settings, progress)

    parts = json.dumps([note["data_hash"], bank.captions, settings.neighbours, settings.beta])
    name = f"{note['model_hash']}-{hashlib.sha256(parts.encode()).hexdigest()[:32]}.safetensors"
    return cached(GalleryBias, os.path.join(os.path.dirname(note["file"]), name), compare, limit)


def bank_scores(
    scoring: str, text_embeds: torch.Tensor, image_embeds: torch.Tensor, bias: GalleryBias, settings: BankSettings
) -> ScoreRows:
    """Scores of captions as queries by one of [`BANK_SCORINGS`], with `s` the cosine and `b` a caption of the bank.

    - `nnn`: `s - alpha * mean(s of the k nearest b)`. Chowdhury et al., *Nearest Neighbor Normalization Improves
      Multimodal Retrieval*, arXiv 2410.24114.
    - `inverted-softmax`: `exp(beta * s) / sum(exp(beta * s of each b))`, here its logarithm.
    - `query-bank`: the same for queries whose best image is the best of some `b`, and the cosine for the others.
      Bogolin et al., *Cross Modal Retrieval with Querybank Normalisation*, CVPR 2022.

    Args:
        text_embeds (`torch.Tensor` of shape `(M, D)`), image_embeds (`(N, D)`): unit norm.

    Returns:
        A function `(start, stop) -> (stop - start, N)` float64: higher is nearer, within a query.

    Raises:
        ValueError: another scoring.
    """
    if scoring not in BANK_SCORINGS:
        raise ValueError(f"no scoring {scoring!r} by a bank; choose from {', '.join(BANK_SCORINGS)}")
    texts, images = text_embeds.double(), image_embeds.double()

    def score_rows(start: int, stop: int) -> np.ndarray:
        cosines = texts[start:stop] @ images.T
        if scoring == NNN:
            return (cosines - settings.alpha * bias.nearest).numpy()
        normalised = settings.beta * cosines - bias.log_sum
        if scoring == QUERY_BANK:
            by_hub = bias.is_found[cosines.argmax(dim=1)]
            normalised = torch.where(by_hub[:, None], normalised, cosines)
        return normalised.numpy()

    return score_rows


def rescore_by_bank(
    scoring: str, encoded: RetrievalSet, bias: GalleryBias, settings: BankSettings, progress: bool = True
) -> QueryRanks:
    """Text-to-image ranks by [`bank_scores`], or by `phrasings-nnn`; each caption is a query."""
    texts = encoded.text_embeds
    if scoring == PHRASINGS_NNN:
        texts, scoring = average_phrasings(texts, encoded.text_image_index), NNN
    scores = bank_scores(scoring, texts, encoded.image_embeds, bias, settings)
    return rank_scores(scores, encoded.text_person_ids, encoded.image_person_ids, progress=progress)
