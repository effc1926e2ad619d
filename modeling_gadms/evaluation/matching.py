"""The best images of each caption ranked anew by the matching head, which reads caption and image together.

The towers find the best few of a whole gallery, and the decoder looks at those again: a cross-encoder over all pairs
would be too slow, and over the best few it has the last word where the towers are least sure.
"""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, BatchFeature, ProcessorMixin

from ..modeling_gadms import GADMSForPreTraining
from ..person_retrieval.ranking import QueryRanks
from ..rows import all_captions
from ..towers_gadms import whole_captions
from .encoding import CaptionBatches, ImageBatches, RetrievalSet, encode_batches
from .rescoring import ScoreRows, rank_scores


@dataclass(frozen=True)
class MatchingSettings:
    """Constants of the re-ranking; choose them on validation, never on test.

    Attributes:
        top (`int`): best images of each caption that are ranked anew, and stay in front of the others.
        factor (`float`): weight of the log odds of a match beside the cosine; a large one leaves the head alone.

    Raises:
        ValueError: a constant is out of range.
    """

    top: int = 16
    factor: float = 0.01

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"matching_top must be at least 1; got {self.top}")
        if not 0 <= self.factor < float("inf"):
            raise ValueError(f"matching_factor must be 0 or more; got {self.factor}")

    def words(self) -> str:
        """How results name the re-ranking."""
        return f"matching head on the best {self.top}, cosine + {self.factor:g} * log odds"


def load_matcher(
    name_or_path: str, *, bf16: bool = False, device: str | torch.device = "cpu"
) -> GADMSForPreTraining | None:
    """The model in a folder or on the Hub with its decoder, in evaluation mode; `None` if it has no matching head."""
    config = AutoConfig.from_pretrained(name_or_path)
    if not getattr(config, "matching_head", False) or config.architectures == ["GADMSModel"]:
        return None
    dtype = torch.bfloat16 if bf16 else torch.float32
    return GADMSForPreTraining.from_pretrained(name_or_path, dtype=dtype).eval().to(device)


class _NumberedBatches(Dataset):
    """Captions of whole batches, and the places that they have among all."""

    def __init__(self, batches: CaptionBatches, size: int) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[slice, BatchFeature]:
        return slice(number * self.size, (number + 1) * self.size), self.batches[number]


@torch.no_grad()
def match_best(
    model: GADMSForPreTraining,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    encoded: RetrievalSet,
    top: int,
    batch_size: int = 64,
    progress: bool = True,
    num_workers: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best images of each caption by the cosine, and the log odds that each matches it.

    The tokens of all images are kept on the CPU in the dtype of the model, at ViT-B/16 0.4 MB per image in float32. As
    in encoding, each process has its share of the work.

    Args:
        model ([`GADMSForPreTraining`]): with a matching head, in evaluation mode.
        dataset (`datasets.Dataset`): what `encoded` was made of.
        batch_size (`int`): images at a time, and about as many pairs.

    Returns:
        Numbers of images, int64 `(M, top)`, and float32 `(M, top)`; `top` is that of the gallery, if it is smaller.
    """
    gadms, top = model.gadms, min(top, len(encoded.image_embeds))

    def tokens_of_images(inputs: BatchFeature) -> torch.Tensor:
        pixels = inputs["pixel_values"].to(model.device, model.dtype)
        return gadms.project_image_tokens(gadms.vision_model(pixels).last_hidden_state).cpu()

    batches = ImageBatches(processor, dataset, batch_size, None)
    images = encode_batches(gadms, batches, tokens_of_images, "Encoding images", progress, num_workers)

    def found(batch: tuple[slice, BatchFeature]) -> torch.Tensor:
        rows, inputs = batch
        best = (encoded.text_embeds[rows] @ encoded.image_embeds.T).topk(top, dim=1).indices
        ids = whole_captions(inputs["input_ids"].to(model.device), model.config.text_config)
        texts = gadms.project_text_tokens(ids)
        each_ids, each_texts = (values.repeat_interleave(top, dim=0) for values in (ids, texts))
        logits = model.match(each_ids, each_texts, images[best.flatten()].to(model.device)).float().cpu()
        log_odds = (logits[:, 1] - logits[:, 0]).view(-1, top)
        return torch.stack([best.double(), log_odds.double()], dim=-1)  # which holds both exactly

    size = max(batch_size // top, 1)
    captions = _NumberedBatches(CaptionBatches(processor, all_captions(dataset)[0], size, model.config), size)
    best, log_odds = encode_batches(gadms, captions, found, "Matching", progress, 0).unbind(dim=-1)
    return best.long(), log_odds.float()


def matching_scores(encoded: RetrievalSet, best: torch.Tensor, log_odds: torch.Tensor, factor: float) -> ScoreRows:
    """Scores of captions as queries: `cosine + factor * log odds` over the best images, which stay in front.

    Args:
        best, log_odds (`torch.Tensor` of shape `(M, top)`): from [`match_best`].

    Returns:
        A function `(start, stop) -> (stop - start, N)` float64: higher is nearer, within a query.
    """
    texts, images = encoded.text_embeds.double(), encoded.image_embeds.double()

    def score_rows(start: int, stop: int) -> np.ndarray:
        cosines, own = texts[start:stop] @ images.T, best[start:stop]
        changed = cosines.gather(1, own) + factor * log_odds[start:stop].double()
        # the least of them lies above every cosine
        return cosines.scatter(1, own, changed - changed.amin(dim=1, keepdim=True) + 2).numpy()

    return score_rows


def rescore_by_matching(
    model: GADMSForPreTraining,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    encoded: RetrievalSet,
    settings: MatchingSettings,
    progress: bool = True,
    **options: Any,
) -> QueryRanks:
    """Text-to-image ranks by [`matching_scores`]; each caption is a query. `options` are those of [`match_best`]."""
    best, log_odds = match_best(model, processor, dataset, encoded, settings.top, progress=progress, **options)
    scores = matching_scores(encoded, best, log_odds, settings.factor)
    return rank_scores(scores, encoded.text_person_ids, encoded.image_person_ids, progress=progress)
