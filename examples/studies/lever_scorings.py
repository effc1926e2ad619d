"""What captions score at test time: phrasings, a bank of training captions, both at once, and the matching head."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from bank_cells import by_cosine
from lever_cells import Found, Seed, kept, trained

from modeling_gadms.evaluation.caption_bank import NNN, BankSettings, bank_scores, caption_bank, gallery_bias
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_captions
from modeling_gadms.evaluation.matching import MatchingSettings, match_best, matching_scores
from modeling_gadms.evaluation.models import Retriever
from modeling_gadms.evaluation.rescoring import average_phrasings, rank_scores
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.person_retrieval.ranking import QueryRanks
from modeling_gadms.rows import all_captions

BANKS = [BankSettings(alpha, k) for alpha in (0.25, 0.5, 0.75, 1.0) for k in (16, 64, 256)]
MATCHINGS = [MatchingSettings(top, factor) for top in (4, 16) for factor in (0.002, 0.01, 0.05, 0.2)]


def rescored(scores: Callable[[Any, int], Any], encoded: list[RetrievalSet], settings: list[Any]) -> tuple[Any, float]:
    """The best of some settings on validation, on both splits, and the milliseconds of one core per query on test.

    Args:
        scores: `(setting, 0 for validation or 1 for test) -> ScoreRows`.
    """

    def rank(one: Any, split: int) -> QueryRanks:
        persons = encoded[split].text_person_ids, encoded[split].image_person_ids
        return rank_scores(scores(one, split), *persons, progress=False)

    chosen = max(settings, key=lambda one: rank(one, 0).average_precision.mean())
    begin = time.process_time()
    test = rank(chosen, 1)
    cost = 1000 * (time.process_time() - begin) / len(encoded[1].text_embeds)
    words = " ".join(f"{value:g}" for name, value in vars(chosen).items() if name != "beta")
    return Found(rank(chosen, 0), test, words), cost


def at_test_time(data: Seed, model: Retriever) -> dict[str, Any]:
    """Phrasings, a bank of training captions, and both at once."""
    encoded = data.encode(model)
    training, *held_out = (all_captions(rows)[0] for rows in data.rows.values())
    bank = caption_bank(training, [caption for captions in held_out for caption in captions])
    embeds = encode_captions(model, data.processor, bank.captions, progress=False)
    means = [average_phrasings(one.text_embeds, one.text_image_index) for one in encoded]
    plain = [one.text_embeds for one in encoded]
    nothing, found = [BankSettings(alpha=0.0)], {"persons": encoded[1].text_person_ids.tolist()}
    for name, texts, settings in (
        ("phrasings", means, nothing),
        ("bank", plain, BANKS),
        ("phrasings and bank", means, BANKS),
    ):

        def scores(one: BankSettings, split: int, texts: list[torch.Tensor] = texts) -> Any:
            images = encoded[split].image_embeds
            return bank_scores(NNN, texts[split], images, gallery_bias(embeds, images, one, progress=False), one)

        ranks, cost = rescored(scores, encoded, settings)
        found[name] = kept(ranks._replace(chosen="" if settings is nothing else ranks.chosen), ms_per_query=cost)
    return found


def reranked(data: Seed, model: GADMSForFineTuning) -> dict[str, Any]:
    """A model trained with a matching head, by the cosine alone and with its best images ranked anew."""
    encoded = data.encode(model.gadms)
    top, pairs, begin = max(one.top for one in MATCHINGS), [], 0.0
    for split, one in zip(("validation", "test"), encoded, strict=True):
        begin = time.process_time()
        pairs.append(match_best(model, data.processor, data.rows[split], one, top, progress=False))
    cost = 1000 * (time.process_time() - begin) / len(encoded[1].text_embeds)

    def scores(one: MatchingSettings, split: int) -> Any:
        nearest, log_odds = (values[:, : one.top] for values in pairs[split])
        return matching_scores(encoded[split], nearest, log_odds, one.factor)

    ranks, ranking = rescored(scores, encoded, MATCHINGS)
    plain = Found(*map(by_cosine, encoded), "")
    return {"matching loss": kept(plain), "re-ranking": kept(ranks, ms_per_query=cost + ranking)}


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every lever on the persons of a seed."""
    data = Seed(seed, args)
    found, model, rate, seconds = trained(data)
    found |= at_test_time(data, model.gadms)
    matcher, longer = data.train(learning_rate=rate, matching_weight=1.0)
    return found | reranked(data, matcher) | {"longer": longer / seconds}
