"""One cell of the repair study: captions as they are, mended or true, and what training on them gives."""

import argparse
import json
import os
from typing import Any

import datasets
from masking_cells import DATA_SEED, SMALL_CLIP, hits_by_query, kept_cell, recipe_trainer
from repair_words import CAPTIONS
from scored_words import drawn_data
from transformers import set_seed

from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.noise.kept_evidence import kept
from modeling_gadms.noise.repaired_captions import FEATURE, add_posteriors, count_words
from modeling_gadms.noise.rewriting import POSTERIOR, certain, repaired
from modeling_gadms.noise.value_reader import ValueReader, train_value_reader
from modeling_gadms.noise.word_families import drawn_families
from modeling_gadms.training.starting_points import load_starting_point

TOWER_RATE = 5e-4  # of the reader's image tower
CELLS = "none", "repair", "sample", "deleted", "oracle", "true"
LEARNT = "repair", "sample"  # these depend on what was learnt of false words


def rows_with_posteriors(
    noise_rate: float, args: argparse.Namespace, setting: dict[str, Any]
) -> tuple[datasets.Dataset, float]:
    """The training rows with posteriors, and the estimated share of false words."""
    size = tuple(args.image_size)
    rows = drawn_data(size, args.num_persons, noise_rate, DATA_SEED).as_dataset(split="train")
    names = [f"{name}_{POSTERIOR}" for name in CAPTIONS]

    def look() -> dict[str, Any]:
        set_seed(0)
        model, processor = load_starting_point(SMALL_CLIP, size)
        families = drawn_families()
        options = (model.gadms, processor, rows, families, args.reader_steps, TOWER_RATE)
        reader = kept(
            os.path.join(args.output_dir, f"reader_{noise_rate}.safetensors"),
            model.gadms,
            lambda: ValueReader(model.gadms, families),
            lambda: train_value_reader(*options),
        )
        found = add_posteriors(reader, processor, rows, count_words(rows, families))
        return {"share_false": reader.share_false.item(), **found.select_columns(names).to_dict()}

    cell = kept_cell(os.path.join(args.output_dir, f"posteriors_{noise_rate}.json"), setting, look)
    for name in names:
        rows = rows.add_column(name, cell[name], feature=FEATURE)
    return rows, cell["share_false"]


def captions_of(cell: str, rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace) -> datasets.Dataset:
    """The training rows with the cell's captions."""
    if cell in ("none", "sample"):
        return rows
    if cell == "true":
        return drawn_data(tuple(args.image_size), args.num_persons, 0.0, DATA_SEED).as_dataset(split="train")
    texts: dict[str, list[str]] = {name: [] for name in CAPTIONS}
    for row in rows.remove_columns("image"):
        for name in CAPTIONS:
            if cell == "deleted":
                texts[name].append(without_false_words(row, name))
            else:
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
            found.append(certain(word["start"], word["end"], right))
    return found


def without_false_words(row: dict[str, Any], name: str) -> str:
    caption = row[name]
    for word in sorted(row[f"{name}_words"], key=lambda word: -word["start"]):
        if word["is_false"]:
            before, after = caption[: word["start"]].rstrip(), caption[word["end"] :].lstrip()
            caption = before + after if after[:1] in (",", ".") else f"{before} {after}".strip()
    return caption


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
        draw_words=cell == "sample",
    )
    trainer.train()
    trainer.evaluate()
    return hits_by_query(trainer.measured)
