"""One cell of the repair study: captions as they are, repaired or true, and what training on them gives."""

import argparse
import json
import os
from typing import Any

import datasets
import numpy as np
from masking_cells import DATA_SEED, EVIDENCE_TOWER_RATE, SMALL_CLIP, kept_cell, recipe_trainer
from repair_words import CAPTIONS
from scored_words import drawn_data
from transformers import set_seed

from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.evaluation.metrics import evaluate_embeddings, query_values
from modeling_gadms.noise.detectors import word_suspicions
from modeling_gadms.noise.kept_evidence import kept_evidence
from modeling_gadms.noise.repaired_captions import POSTERIOR, add_posteriors, calibrate_families, repaired
from modeling_gadms.noise.word_families import drawn_families
from modeling_gadms.training.starting_points import load_starting_point

CELLS = "none", "repair", "oracle", "true"


def evidence_and_rows(
    noise_rate: float, args: argparse.Namespace, setting: dict[str, Any]
) -> tuple[datasets.Dataset, float, list[list[float]]]:
    """The training rows with posteriors, the estimated share of false words, and the suspicion of plain evidence."""
    size = tuple(args.image_size)
    rows = drawn_data(size, args.num_persons, noise_rate, DATA_SEED).as_dataset(split="train")
    names = [f"{name}_{POSTERIOR}" for name in CAPTIONS]

    def look() -> dict[str, Any]:
        set_seed(0)
        model, processor = load_starting_point(SMALL_CLIP, size)
        evidence = kept_evidence(
            model.gadms,
            processor,
            rows,
            os.path.join(args.output_dir, f"evidence_{noise_rate}.safetensors"),
            steps=args.evidence_steps,
            tower_learning_rate=EVIDENCE_TOWER_RATE,
            batch_size=64,
            seed=0,
            num_workers=0,
        )
        calibrated = calibrate_families(evidence, processor, rows, drawn_families())
        found = add_posteriors(evidence, processor, rows, calibrated).select_columns(names).to_dict()
        plain = word_suspicions("evidence", model.gadms, processor, rows, rows, evidence)
        return {"share_false": calibrated.share_false, "plain": plain, **found}

    kept = kept_cell(os.path.join(args.output_dir, f"posteriors_{noise_rate}.json"), setting, look)
    for name in names:
        rows = rows.add_column(name, kept[name])
    return rows, kept["share_false"], kept["plain"]


def captions_of(cell: str, rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace) -> datasets.Dataset:
    """The training rows with the cell's captions."""
    if cell == "none":
        return rows
    if cell == "true":
        return drawn_data(tuple(args.image_size), args.num_persons, 0.0, DATA_SEED).as_dataset(split="train")
    texts: dict[str, list[str]] = {name: [] for name in CAPTIONS}
    for row in rows.remove_columns("image"):
        for name in CAPTIONS:
            posterior = row[f"{name}_{POSTERIOR}"] if cell == "repair" else true_words(row, name)
            texts[name].append(repaired(row[name], posterior))
    rows = rows.remove_columns(list(texts))
    for name, captions in texts.items():
        rows = rows.add_column(name, captions)
    return rows


def true_words(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A posterior that is sure of the truth, for the false words that have one."""
    truth = json.loads(row["attributes"])
    found = []
    for word in row[f"{name}_words"]:
        value = truth[word["attribute"]]
        if word["is_false"] and value != "none":
            words = WORDS[word["attribute"]][value]
            right = words[(word["start"] + row["person_id"]) % len(words)]  # all its words get their turn
            found.append({**word, "words": ["", right], "probabilities": [0.0, 1.0]})
    return found


def train_cell(cell: str, noise_rate: float, seed: int, rows: datasets.Dataset, args: argparse.Namespace) -> dict:
    """Train on the cell's captions by the recipe of the masking table, without masks, and test both ways."""
    train = captions_of(cell, rows, noise_rate, args)
    size = tuple(args.image_size)
    test = drawn_data(size, args.num_persons, noise_rate, DATA_SEED).as_dataset(split="test")
    set_seed(seed)
    model, processor = load_starting_point(SMALL_CLIP, size)
    trainer = recipe_trainer(
        "none",
        seed,
        model,
        processor,
        train,
        test,
        output_dir=os.path.join(args.output_dir, "trainer"),
        num_train_epochs=args.epochs,
        logging_steps=25,
    )
    trainer.train()
    trainer.evaluate()
    found = evaluate_embeddings(trainer.measured, num_resamples=100)
    values = {way: np.round(query_values(ranks)["R@1"], 3).tolist() for way, ranks in found.ranks.items()}
    return {"values": values, "persons": {way: found.person_ids[way].tolist() for way in values}}
