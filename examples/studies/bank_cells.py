"""One seed of the study of banks: what each caption of test scores by each scoring, before and after training."""

import argparse
import os
import time
from typing import Any

import datasets
import numpy as np
from recipe import recipe_trainer
from starting_point import starting_point
from transformers import ProcessorMixin

from dataset_webperson import WebPerson
from modeling_gadms.evaluation.caption_bank import (
    BANK_SCORINGS,
    NNN,
    BankSettings,
    caption_bank,
    gallery_bias,
    rescore_by_bank,
)
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_captions, encode_retrieval_set
from modeling_gadms.evaluation.metrics import query_values
from modeling_gadms.evaluation.models import Retriever
from modeling_gadms.person_retrieval.ranking import QueryRanks, rank_queries
from modeling_gadms.rows import all_captions

COSINE, METRICS = "cosine", ("R@1", "mAP")
GRIDS = {NNN: [BankSettings(alpha, k) for alpha in (0.125, 0.25, 0.5, 0.75, 1.0) for k in (1, 4, 16, 64, 256)]}
GRIDS |= {name: [BankSettings(beta=beta) for beta in (2, 5, 10, 20, 50)] for name in BANK_SCORINGS[1:]}


def by_cosine(encoded: RetrievalSet) -> QueryRanks:
    persons = encoded.text_person_ids, encoded.image_person_ids
    return rank_queries(encoded.text_embeds, encoded.image_embeds, *persons)


def measure(model: Retriever, processor: ProcessorMixin, rows: datasets.DatasetDict) -> dict[str, Any]:
    """What each caption of test scored in each way, with constants chosen on validation, and the time that took."""
    training, *held_out = (all_captions(rows[split])[0] for split in ("train", "validation", "test"))
    bank = caption_bank(training, [caption for captions in held_out for caption in captions])
    splits = (rows[split] for split in ("validation", "test"))
    validation, test = (encode_retrieval_set(model, processor, split, progress=False) for split in splits)
    start = time.perf_counter()
    embeds = encode_captions(model, processor, bank.captions, progress=False)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"bank": str(bank), "bank_seconds": seconds, "persons": test.text_person_ids.tolist()}

    def rank(scoring: str, settings: BankSettings, encoded: RetrievalSet) -> QueryRanks:
        bias = gallery_bias(embeds, encoded.image_embeds, settings, progress=False)
        return rescore_by_bank(scoring, encoded, bias, settings, progress=False)

    for scoring in (COSINE, *BANK_SCORINGS):
        chosen = max(
            GRIDS.get(scoring, []),
            key=lambda one, scoring=scoring: rank(scoring, one, validation).average_precision.mean(),
            default=None,
        )
        start = time.perf_counter()
        ranks = rank(scoring, chosen, test) if chosen else by_cosine(test)
        cost = 1000 * (time.perf_counter() - start) / len(test.text_embeds)
        values = query_values(ranks)
        kept = {name: np.round(values[name], 3).tolist() for name in METRICS}
        found[scoring] = {"chosen": chosen and vars(chosen), "ms_per_query": cost, **kept}
    return found


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both models on the persons of a seed."""
    size, persons = tuple(args.image_size), args.num_persons
    sizes = {"num_train_persons": persons, "num_validation_persons": persons // 4, "num_test_persons": persons // 2}
    data = WebPerson(config_name="synthetic", seed=seed, image_size=size, noise_rate=args.noise_rate, **sizes)
    data.download_and_prepare()
    rows = datasets.DatasetDict({split: data.as_dataset(split=split) for split in ("train", "validation", "test")})
    model, processor = starting_point(False, seed, size)
    found = {"base": measure(model.gadms, processor, rows)}
    where = {"output_dir": os.path.join(args.output_dir, "trainer"), "num_train_epochs": args.epochs}
    recipe_trainer("none", seed, model, processor, rows["train"], rows["validation"], **where).train()
    return found | {"trained": measure(model.gadms, processor, rows)}
