"""Methods that find false words in captions: a number for each word, high where it is called false."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from dataset_webperson import DataError

from ..evaluation.encoding import embed_images
from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns
from ..tokenization_gadms import clean_caption
from ..towers_gadms import CLIP, is_causal, kind_of
from ..training.command_line import refuse_image_size
from ..training.starting_points import load_starting_point
from .attribute_oracle import oracle_trust, train_oracle
from .caption_trust import phrase_cosines, swap_contrasts
from .patch_evidence import PatchEvidence
from .score_files import image_sizes
from .token_trust import (
    CLIP4DM_PREFIX,
    PASSES,
    clip4dm,
    decoder_surprise,
    gass,
    image_cosines,
    masked_drops,
    patch_concentration,
    patch_cosines,
    random_scores,
    released_gass,
)
from .value_reader import ValueReader, read_values
from .word_families import Family, drawn_families, families_for, said_words

WITH_EVIDENCE, POSTERIOR = ("evidence", "entropy"), "posterior"
OF_TOKENS = {
    "random": random_scores,
    "cosine": image_cosines,
    "nam": patch_cosines,
    "gass": gass,
    "gass-released": released_gass,
    "clip4dm": clip4dm,
    "masked": masked_drops,
}
ORACLE, ORACLE_EPOCHS = "oracle", 10
OF_CAPTIONS = "phrase", "swap"
OF_FAMILIES = "swap", POSTERIOR
METHODS = *OF_TOKENS, "surprise", *OF_CAPTIONS, *WITH_EVIDENCE, POSTERIOR, ORACLE
PREFIXES = {"clip4dm": CLIP4DM_PREFIX}  # before each caption
TokenScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids, word of each or -1 -> (B, T), high: trusted
Found = list[list[float | None]]  # for each caption how far each of its words is trusted; None where nothing is known


def word_suspicions(
    method: str,
    model: GADMSModel,
    processor: GADMSProcessor,
    test: datasets.Dataset,
    evidence: PatchEvidence | None = None,
    reader: ValueReader | None = None,
    batch_size: int = 100,
    decoder: GADMSForPreTraining | None = None,
    oracle_persons: int = 6000,
    families: Mapping[str, Family] | None = None,
) -> Found:
    """A score for each listed word of the test captions: image after image, and of each image `caption1`, `caption2`.

    Where a method scores tokens, a word's score is the mean of its tokens'. A word that the tower's length cuts off,
    or that a method knows nothing of, has None; [`filled`] gives it the mean of all words.

    Args:
        method (`str`): one of `METHODS`.
        model ([`GADMSModel`]): in evaluation mode, on the device to compute on, as what else is given.
        processor ([`GADMSProcessor`]): its processor.
        test (`datasets.Dataset`): with columns `image_path` and `caption1_words`, ...
        evidence ([`PatchEvidence`], *optional*): for the methods of `WITH_EVIDENCE`, learnt from other captions.
        reader ([`ValueReader`], *optional*): for the method `posterior`, learnt from other captions.
        batch_size (`int`): test images at a time.
        decoder ([`GADMSForPreTraining`], *optional*): for the method `surprise`, with a trained decoder.
        oracle_persons (`int`): drawn for the method `oracle` to be taught.
        families (`Mapping[str, Family]`, *optional*): for `swap`, and those that the reader of `posterior` has learnt;
            by default those of [`families_for`].

    Raises:
        DataError: the method is not for such a model or such data, it scores no word at all, or a caption is not as
            the tokenizer reads it.
        ValueError: what the method has to learn first is not given.
    """
    families = families_for(test.column_names) if families is None else families
    refuse_method(method, model, test, decoder, families)
    if method in WITH_EVIDENCE and evidence is None:
        raise ValueError(f"{method} needs patch evidence")
    if method == POSTERIOR:
        if reader is None:
            raise ValueError("posterior needs a value reader")
        return _some(_doubts(reader, processor, test, families), method)
    if method == ORACLE:
        first = test[0]["image"]
        oracle = train_oracle((first.height, first.width), oracle_persons, ORACLE_EPOCHS, device=model.device)
    found: Found = []
    for start in range(0, len(test), batch_size):
        part = test[start : start + batch_size]
        trust: Callable[[str], Found]
        if method == ORACLE:
            trust = functools.partial(oracle_trust, oracle, part["image"], part)
        else:
            pixels = processor(images=part["image"], return_tensors="pt")["pixel_values"].to(model.device)
            if method in OF_CAPTIONS:
                trust = _caption_scorer(method, model, processor, pixels, part, families)
            else:
                tokens = _token_scorer(method, model, pixels, evidence, decoder)
                trust = functools.partial(_of_words, tokens, processor, model.device, PREFIXES.get(method, ""), part)
        by_column = [trust(name) for name in caption_columns(part)]
        found += [one for row in zip(*by_column, strict=True) for one in row]
    return _some([[None if trust is None else -trust for trust in one] for one in found], method)


def load_model(
    name_or_path: str, image_size: Sequence[int] | None, own_size: tuple[int, int]
) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """A model, and the processor that makes all images of the size that it reads.

    Args:
        name_or_path (`str`): as [`load_starting_point`] takes it.
        image_size (`Sequence[int]`, *optional*): height and width in pixels; by default `own_size`, or what a GA-DMS
            reads.
        own_size (`tuple[int, int]`): of the images.

    Raises:
        DataError: there is no such model, or it does not read images of this size.
        ValueError: this is no size.
    """
    if image_size:
        refuse_image_size(image_size)
    size = tuple(image_size or own_size)
    try:
        model, processor = load_starting_point(name_or_path, (size[0], size[1]))
    except DataError as error:
        cure = "; give a size that is one with --image_size" if "not a multiple of patch_size" in str(error) else ""
        raise DataError(f"{error}{cure}") from error
    found = tuple(model.gadms.config.vision_config.image_size)
    if image_size and found != size:
        raise DataError(f"{name_or_path}: reads images at {found[0]} x {found[1]} alone; leave out --image_size")
    return model, processor


def refuse_method(
    method: str,
    model: GADMSModel,
    test: datasets.Dataset,
    decoder: GADMSForPreTraining | None,
    families: Mapping[str, Family] | None = None,
) -> None:
    """Refuse a method that does not go with a model or with data, before anything is computed.

    Raises:
        DataError: says what the method needs, or which caption is not as the tokenizer reads it.
    """
    refuse_unclean(test)
    if method == "gass-released" and kind_of(model.config.text_config) != CLIP:
        raise DataError("gass-released is for CLIP's text tower alone; leave it out")
    if method == "clip4dm" and not is_causal(model.config.text_config):
        raise DataError("clip4dm is for causal text towers such as CLIP's; leave it out")
    if method == "surprise" and decoder is None:
        raise DataError(
            "surprise asks the decoder of pre-training, and the model has none: give --model_name_or_path the folder "
            "of a GADMSForPreTraining, as examples/pretrain.py writes it"
        )
    if method == ORACLE and "attributes" not in test.column_names:
        raise DataError("oracle is taught drawn persons, and the data have no column attributes: leave it out")
    if method == ORACLE and len(image_sizes(test)) > 1:
        raise DataError("oracle is taught drawn persons of one size, and the test images have several: leave it out")
    if method in OF_FAMILIES:
        families = families_for(test.column_names) if families is None else families
        if not _names_any(test, families):
            raise DataError(
                f"{method} asks what else of a family could be said, and no listed word of the test captions says a "
                f"value of the families {', '.join(families)}: give families of these words, or leave it out"
            )
    if method == ORACLE and not _names_any(test, drawn_families()):
        raise DataError("oracle knows the attributes of drawn persons, and no listed word is of any: leave it out")


def refuse_unclean(test: datasets.Dataset) -> None:
    """Refuse captions that the tokenizer changes in more than their case: it would find other words in their places.

    Raises:
        DataError: names the image and the caption, and what the tokenizer reads.
    """
    names = caption_columns(test.column_names)
    for row in test.select_columns(["image_path", *names]):
        for name in names:
            caption, cleaned = row[name], clean_caption(row[name])
            if cleaned != caption.lower() or len(cleaned) != len(caption):
                raise DataError(
                    f"{row['image_path']}: {name} is read as {cleaned!r}, where the places of words are others: write "
                    "captions as modeling_gadms.tokenization_gadms.clean_caption gives them, and move start and end "
                    f"of {name}_words"
                )


def _names_any(test: datasets.Dataset, families: Mapping[str, Family]) -> bool:
    """Whether a listed word of any caption begins where a value of a family is said."""
    names = caption_columns(test.column_names)
    texts = test.select_columns([one for one in test.column_names if one.startswith("caption")])
    return any(
        {word["start"] for word in row[f"{name}_words"]} & {word.start for word in said_words(row, name, families)}
        for row in texts
        for name in names
    )


@torch.no_grad()
def _caption_scorer(
    method: str,
    model: GADMSModel,
    processor: GADMSProcessor,
    pixels: torch.Tensor,
    part: dict[str, Any],
    families: Mapping[str, Family],
) -> Callable[[str], Found]:
    """What gives the trust in the words of a column, by whole texts."""
    images = embed_images(model, {"pixel_values": pixels})
    if method == "phrase":
        return functools.partial(phrase_cosines, model, processor, images, part)
    return functools.partial(swap_contrasts, model, processor, images, part, families=families)


@torch.no_grad()
def _token_scorer(
    method: str,
    model: GADMSModel,
    pixels: torch.Tensor,
    evidence: PatchEvidence | None,
    decoder: GADMSForPreTraining | None,
) -> TokenScores:
    if method in OF_TOKENS:
        return lambda ids, words: OF_TOKENS[method](model, pixels, ids)
    if decoder is not None and method == "surprise":
        image_tokens = model.project_image_tokens(model.vision_model(pixels).last_hidden_state)
        return lambda ids, words: decoder_surprise(
            decoder, image_tokens, ids, torch.where(words < 0, -1, words % PASSES)
        )
    assert evidence is not None  # as word_suspicions has checked
    keys = evidence.keys(pixels)
    if method == "entropy":
        return lambda ids, words: patch_concentration(evidence, keys, ids)
    return lambda ids, words: evidence.score(keys, ids)


@torch.no_grad()
def _of_words(
    scores: TokenScores,
    processor: GADMSProcessor,
    device: torch.device,
    prefix: str,
    part: dict[str, Any],
    name: str,
) -> Found:
    """Means over the tokens of each listed word; the prefix before each caption is not scored."""
    captions = [prefix + caption for caption in part[name]]
    encoded = processor.tokenizer(
        **processor.caption_options(captions), return_offsets_mapping=True, return_tensors="pt"
    )
    words = torch.full(encoded["input_ids"].shape, -1)
    starts, ends = (encoded["offset_mapping"] - len(prefix)).unbind(dim=-1)
    for row, listed in enumerate(part[f"{name}_words"]):
        for number, word in enumerate(listed):
            inside = (starts[row] >= word["start"]) & (starts[row] < word["end"]) & (ends[row] > starts[row])
            words[row, inside] = number
    trusted = scores(encoded["input_ids"].to(device), words.to(device)).cpu()
    return [
        [own[inside].mean().item() if (inside := of_row == n).any() else None for n in range(len(listed))]
        for own, of_row, listed in zip(trusted, words, part[f"{name}_words"], strict=True)
    ]


def _doubts(
    reader: ValueReader, processor: GADMSProcessor, test: datasets.Dataset, families: Mapping[str, Family]
) -> Found:
    """Probability of each listed word to be false."""
    names, doubts = caption_columns(test.column_names), {}
    first = 0
    for batch, true in read_values(reader, processor, test, families, progress=False):
        for (row, name, word), shares, said in zip(batch.places.words, true, batch.places.said.tolist(), strict=True):
            doubts[first + row, name, word.start] = 1 - shares[said]
        first += len(batch.image_paths)
    listed = test.select_columns([f"{name}_words" for name in names])
    return [
        [doubts.get((number, name, word["start"])) for word in row[f"{name}_words"]]
        for number, row in enumerate(listed)
        for name in names
    ]


def _some(found: Found, method: str) -> Found:
    """Raise `DataError` where no word has a score."""
    if all(score is None for one in found for score in one):
        raise DataError(
            f"{method} scores no listed word: all lie beyond what the model reads of a caption; leave it out"
        )
    return found


def filled(found: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The scores of words, in which a word without one has the mean of those that have one.

    >>> filled([[0.2, None], [0.4]])
    [[0.2, 0.30000000000000004], [0.4]]
    """
    mean = float(np.mean([score for one in found for score in one if score is not None]))
    return [[mean if score is None else score for score in one] for one in found]


def scored_share(found: Sequence[Sequence[float | None]]) -> float:
    """The share of the words that have a score of their own.

    >>> scored_share([[0.2, None], [0.4, 0.1]])
    0.75
    """
    return float(np.mean([score is not None for one in found for score in one]))
