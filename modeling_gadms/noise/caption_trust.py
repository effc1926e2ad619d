"""Numbers for the words of captions from whole texts: what a model says of a phrase alone, or of a word's rivals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..evaluation.encoding import encode_captions
from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..tokenization_gadms import clean_caption
from .rewriting import certain, repaired
from .word_families import Family, SaidWord, said_words

TEXTS = 500  # in one pass of the text tower
ADJECTIVES = "color", "length", "pattern", "sleeve"  # attributes whose words want a noun after them


def phrase_around(caption: str, words: Sequence[Mapping[str, Any]], number: int) -> str:
    """The noun phrase of a word: the listed words of its thing that stand next to each other, and what lies between.

    The thing is what the attribute's name begins with, "coat" of "coat.color". Where only adjectives are listed, the
    noun is the word that follows.

    >>> words = [
    ...     {"start": 2, "end": 6, "attribute": "hair.length"},
    ...     {"start": 7, "end": 12, "attribute": "hair.color"},
    ...     {"start": 21, "end": 25, "attribute": "coat.garment"},
    ...     {"start": 29, "end": 34, "attribute": "coat.color"},
    ... ]
    >>> [phrase_around("a long black hair, a coat in green", words, number) for number in (0, 2)]
    ['long black hair', 'coat in green']
    """
    kinds = [word["attribute"].split(".") for word in words]
    first = last = number
    while first > 0 and kinds[first - 1][0] == kinds[number][0]:
        first -= 1
    while last + 1 < len(words) and kinds[last + 1][0] == kinds[number][0]:
        last += 1
    end = words[last]["end"]
    if all(kind[-1] in ADJECTIVES for kind in kinds[first : last + 1]):
        following = caption[end:].split(maxsplit=1)
        if following and caption[end] == " ":
            end = caption.index(following[0], end) + len(following[0].rstrip(",.;:"))
    return caption[words[first]["start"] : end]


def phrase_cosines(
    model: GADMSModel, processor: GADMSProcessor, image_embeds: torch.Tensor, rows: Mapping[str, Any], name: str
) -> list[list[float | None]]:
    """Cosine of the image to each word's noun phrase alone (F-CLIPScore, arXiv 2502.20034).

    Args:
        image_embeds (`torch.Tensor` of shape `(B, D)`): unit embeddings of the images.
        rows: a batch of rows with the columns `name` and `<name>_words`, each a list of length `B`.
    """
    pairs = zip(rows[name], rows[f"{name}_words"], strict=True)
    phrases = [[phrase_around(caption, words, n) for n in range(len(words))] for caption, words in pairs]
    embeds = text_embeds(model, processor, [phrase for own in phrases for phrase in own])
    return [
        [float(image @ embeds[phrase]) for phrase in own] for image, own in zip(image_embeds, phrases, strict=True)
    ]


def swap_contrasts(
    model: GADMSModel,
    processor: GADMSProcessor,
    image_embeds: torch.Tensor,
    rows: Mapping[str, Any],
    name: str,
    families: Mapping[str, Family],
) -> list[list[float | None]]:
    """The caption's log-odds against itself with the other values of each word's family in its place.

    `s - log mean exp s'` over the other values, where `s` is cosine / temperature and each value is said by the first
    of its words; None for a word of no family. The arguments are those of [`phrase_cosines`].
    """
    captions = [clean_caption(caption) for caption in rows[name]]
    rivals: list[dict[int, list[str]]] = []  # of each caption: the word's start -> captions with other values
    for caption, listed in zip(captions, rows[f"{name}_words"], strict=True):
        rivals.append({})
        for word in said_words({name: caption, f"{name}_words": listed}, name, families):
            versions = with_each_value(caption, word, families[word.family])
            rivals[-1][word.start] = [text for value, text in versions.items() if value != word.value]
    swapped = [text for own in rivals for texts in own.values() for text in texts]
    embeds, temperature = text_embeds(model, processor, [*captions, *swapped]), model.config.temperature
    found: list[list[float | None]] = []
    for image, caption, own, listed in zip(image_embeds, captions, rivals, rows[f"{name}_words"], strict=True):
        odds: list[float | None] = []
        for word in listed:
            if texts := own.get(word["start"]):
                others = torch.stack([embeds[text] for text in texts]) @ image / temperature
                mean = others.logsumexp(dim=0) - math.log(len(others))
                odds.append(float(embeds[caption] @ image / temperature - mean))
            else:
                odds.append(None)
        found.append(odds)
    return found


def with_each_value(caption: str, word: SaidWord, family: Family) -> dict[str, str]:
    """The caption by the value that stands in the word's place: its own as it is, others by the first of their words.

    >>> from modeling_gadms.noise.word_families import drawn_families
    >>> with_each_value("a red coat", SaidWord(2, 5, "coat.color", "red"), drawn_families()["coat.color"])["orange"]
    'an orange coat'
    """
    return {
        value: caption if value == word.value else repaired(caption, [certain(word.start, word.end, words[0])])
        for value, words in family.values.items()
    }


def text_embeds(model: GADMSModel, processor: GADMSProcessor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Unit embeddings of texts."""
    different = list(dict.fromkeys(texts))
    embeds = encode_captions(model, processor, different, batch_size=TEXTS, progress=False)
    return dict(zip(different, embeds, strict=True))
