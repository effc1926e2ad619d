"""What a contrastive model makes of a word and its rivals, as posteriors: an opponent of the reader of values."""

from collections.abc import Mapping
from typing import Any

import datasets
import torch
from repair_words import CAPTIONS
from tqdm.auto import trange

from modeling_gadms.evaluation.encoding import embed_images
from modeling_gadms.modeling_gadms import GADMSModel
from modeling_gadms.noise.caption_trust import text_embeds, with_each_value
from modeling_gadms.noise.repaired_captions import alternatives, count_words
from modeling_gadms.noise.rewriting import POSTERIOR
from modeling_gadms.noise.word_families import Family, SaidWord, said_words
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.tokenization_gadms import clean_caption

STEEPNESS = torch.linspace(0.0, 2.0, 41)  # tried, of each family
IMAGES = 50  # at a time


@torch.no_grad()
def swapped_posteriors(
    model: GADMSModel,
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    families: Mapping[str, Family],
    share_false: float,
) -> dict[str, list[list[dict[str, Any]]]]:
    """Columns as `add_posteriors` gives them, by swap contrast: the caption beside itself with each other value.

    A value's evidence is its caption's cosine / temperature. All else is as with the reader: the values' frequencies,
    a speaker who errs, and for each family a steepness that makes what is said likeliest; 0 leaves the family out.

    Args:
        share_false: of the words; the true share is given, so that the opponent is at its best.
    """
    vocabulary = count_words(rows, families)
    said: list[tuple[int, str, SaidWord, str]] = []  # row, caption, word and its text
    logits: list[torch.Tensor] = []
    for start in trange(0, len(rows), IMAGES, desc="Swapping words"):
        part = rows[start : start + IMAGES]
        images = embed_images(model, processor(images=part["image"], return_tensors="pt"))
        asked: list[tuple[int, str, SaidWord, str, list[str]]] = []
        for row in range(len(images)):
            for name in CAPTIONS:
                caption = clean_caption(part[name][row])
                told = {name: caption, f"{name}_words": part[f"{name}_words"][row]}
                for word in said_words(told, name, families):
                    rivals = list(with_each_value(caption, word, families[word.family]).values())
                    asked.append((row, name, word, caption[word.start : word.end], rivals))
        embeds = text_embeds(model, processor, [caption for *_, rivals in asked for caption in rivals])
        for row, name, word, text, rivals in asked:
            said.append((start + row, name, word, text))
            cosines = torch.stack([embeds[caption] for caption in rivals]) @ images[row]
            logits.append(cosines / model.config.temperature)
    columns: dict[str, list[list[dict[str, Any]]]] = {
        f"{name}_{POSTERIOR}": [[] for _ in range(len(rows))] for name in CAPTIONS
    }
    for family, values in families.items():
        own = [number for number, (_, _, word, _) in enumerate(said) if word.family == family]
        if not own:
            continue
        order = list(values.values)
        spoken = torch.tensor([order.index(said[number][2].value) for number in own])
        joint = fitted(torch.stack([logits[number] for number in own]), spoken, share_false)
        if joint is None:
            continue
        for number, shares in zip(own, joint, strict=True):
            row, name, word, text = said[number]
            found = alternatives(word, text, shares.numpy(), f"{row} {name} {word.start}", vocabulary)
            place = {"start": word.start, "end": word.end, "family": family, "absent": 0.0}
            columns[f"{name}_{POSTERIOR}"][row].append(place | found)
    return {
        column: [sorted(places, key=lambda place: place["start"]) for places in found]
        for column, found in columns.items()
    }


def fitted(logits: torch.Tensor, said: torch.Tensor, share_false: float) -> torch.Tensor | None:
    """Posterior `(N, V)` of each value at the steepness that makes what is said likeliest; None where that is 0.

    Args:
        logits: `(N, V)`, evidence of each value.
        said: `(N,)` int64, what the word says.
    """
    frequency = (torch.bincount(said, minlength=logits.shape[1]) + 0.5) / (len(said) + 0.5 * logits.shape[1])
    says = share_false * frequency[said][:, None] / (1 - frequency)[None]
    says = says.scatter(1, said[:, None], 1 - share_false)
    joints = [(steepness * logits + frequency.log()).softmax(dim=1) * says for steepness in STEEPNESS]
    likely = [joint.sum(dim=1).log().sum() for joint in joints]
    best = int(torch.stack(likely).argmax())
    return joints[best] / joints[best].sum(dim=1, keepdim=True) if best else None
