"""Trims a vocabulary to the pieces of a corpus: of the 256,000 that SigLIP 2 knows, captions of persons need a few.

Of such towers most weights are embeddings of words, and the decoder of pre-training predicts over all of them.
"""

import copy
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from dataset_webperson import DataError

from ..configuration_gadms import has_clip_text
from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..processing_gadms import GADMSProcessor

BATCH = 1024  # captions tokenized at a time
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}  # what letters without a piece of their own are cut into


def trim_vocabulary(
    model: GADMSForPreTraining | GADMSModel, processor: GADMSProcessor, captions: Iterable[str]
) -> torch.Tensor:
    """Keep, in the model and its processor, the pieces that the captions are cut into, and forget the others.

    Every caption of the corpus keeps its pieces, under new ids, and so its embedding. Other words are cut into
    smaller pieces. Both the model and the processor are changed in place.

    Args:
        model ([`GADMSForPreTraining`] or [`GADMSModel`]): of other towers than CLIP's.
        processor ([`GADMSProcessor`]): the model's.
        captions (iterable of `str`): the corpus; it is passed over once and its captions are kept.

    Returns:
        `torch.Tensor` of shape `(new vocabulary size,)`: int64, the old id of each new one, in ascending order. With
        the old embeddings, `old[ids] = new` is the way back.

    Raises:
        DataError: there are no captions, or the towers are CLIP's, whose vocabulary is small and in a fixed order.
    """
    if has_clip_text(model.config.tower):
        raise DataError("the vocabulary of CLIP's tower is not trimmed: it is small, and its ids are in a fixed order")
    texts = list(dict.fromkeys(captions))
    if not texts:
        raise DataError("there are no captions to keep the pieces of: give a corpus")
    state = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    pieces = _pieces(state)
    numbers = {piece: number for number, piece in pieces.items()}

    before = list(_encoded(processor, texts))
    kept: set[int] = {token["id"] for token in state["added_tokens"]}
    text = model.config.text_config
    named = (text.bos_token_id, text.eos_token_id, text.pad_token_id, model.config.mask_token_id)
    kept.update(number for number in named if number is not None)
    kept.update(numbers[piece] for piece in BYTES & numbers.keys())
    kept.update(itertools.chain.from_iterable(before))
    old_ids = sorted(kept | _needed(state, kept, pieces, numbers))

    processor.tokenizer = _trimmed_tokenizer(processor.tokenizer, state, old_ids, pieces)
    for caption, old, new in zip(texts, before, _encoded(processor, texts), strict=True):
        if [old_ids[number] for number in new] != old:
            raise DataError(f"caption {caption!r} is cut otherwise by the trimmed vocabulary: leave it out")
    _trim_model(model, torch.tensor(old_ids))
    return torch.tensor(old_ids)


def _encoded(processor: GADMSProcessor, captions: list[str]) -> Iterator[list[int]]:
    """Ids of each caption, not cut, so that the pieces of its end are kept too."""
    for first in range(0, len(captions), BATCH):
        options = processor.caption_options(captions[first : first + BATCH])
        yield from processor.tokenizer(options["text"], verbose=False)["input_ids"]


def _pieces(state: dict[str, Any]) -> dict[int, str]:
    """The piece of each id, from the JSON of a tokenizer: a dictionary in BPE, a list of scores in Unigram."""
    vocab = state["model"]["vocab"]
    found = {number: piece for piece, number in vocab.items()} if isinstance(vocab, dict) else {}
    found = found or {number: piece for number, (piece, _) in enumerate(vocab)}
    return found | {token["id"]: token["content"] for token in state["added_tokens"]}


def _needed(state: dict[str, Any], kept: set[int], pieces: dict[int, str], numbers: dict[str, int]) -> set[int]:
    """Ids without which the kept pieces would not come about.

    BPE takes the first merge of its list that applies. With every merge that yields a kept piece or a part of it, the
    merges of the corpus's captions remain the first. Unigram takes the best of all ways to cut, which remains the best
    among fewer; what an unknown letter costs follows from the worst score, so the piece that has it stays.
    """
    model = state["model"]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return {scores.index(min(scores))}
    parts: dict[str, list[str]] = {}
    for left, right in map(_pair, model["merges"]):
        parts.setdefault(left + right, []).extend((left, right))
    found, waiting = set[str](), [pieces[number] for number in kept]
    while waiting:
        new = [part for part in parts.get(waiting.pop(), ()) if part not in found]
        found.update(new)
        waiting += new
    return {numbers[piece] for piece in found}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _trimmed_tokenizer(tokenizer: Any, state: dict[str, Any], old_ids: list[int], pieces: dict[int, str]) -> Any:
    """A copy of the tokenizer that knows these ids alone, numbered anew in their order."""
    new_ids = {old: new for new, old in enumerate(old_ids)}
    model, vocab = state["model"], state["model"]["vocab"]
    if model["type"] == "Unigram":
        # pieces behind the scored ones were added, and stay so
        model["vocab"] = [vocab[old] for old in old_ids if old < len(vocab)]
        if model["unk_id"] is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_ids[old] for piece, old in vocab.items() if old in new_ids}
        names = model["vocab"].keys()
        pairs = map(_pair, model["merges"])
        model["merges"] = [[left, right] for left, right in pairs if {left, right, left + right} <= names]
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    for token in ((state["post_processor"] or {}).get("special_tokens") or {}).values():
        token["ids"] = [new_ids[old] for old in token["ids"]]
    trimmed = copy.deepcopy(tokenizer)
    trimmed._tokenizer = Tokenizer.from_str(json.dumps(state))
    return trimmed


@torch.no_grad()
def _trim_model(model: GADMSForPreTraining | GADMSModel, old_ids: torch.Tensor) -> None:
    """Keep these rows of the embeddings and of the decoder's vocabulary layer, and number the special tokens anew."""
    gadms = model.gadms if isinstance(model, GADMSForPreTraining) else model
    embeddings = gadms.text_model.embeddings
    embeddings.token_embedding = nn.Embedding.from_pretrained(
        embeddings.token_embedding.weight[old_ids].clone(), freeze=False
    )
    if isinstance(model, GADMSForPreTraining):
        layer = model.decoder.vocabulary
        smaller = nn.Linear(layer.in_features, len(old_ids), device=layer.weight.device, dtype=layer.weight.dtype)
        smaller.weight.copy_(layer.weight[old_ids])
        smaller.bias.copy_(layer.bias[old_ids])
        model.decoder.vocabulary = smaller
        model.decoder.config.vocab_size = len(old_ids)
    new_ids = {old: new for new, old in enumerate(old_ids.tolist())}
    config = model.config
    config.mask_token_id = new_ids[config.mask_token_id]
    for text_config in {id(one): one for one in (config.text_config, gadms.text_model.config)}.values():
        text_config.vocab_size = len(old_ids)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text_config, name, new_ids.get(getattr(text_config, name)))
