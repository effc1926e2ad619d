"""One cell of the repair study: captions as they are, mended, with words left out or true, and training on them."""

import argparse
import json
import os
from typing import Any

import datasets
import torch
from masking_cells import DATA_SEED, SMALL_CLIP, hits_by_query, kept_cell, recipe_trainer
from repair_words import CAPTIONS
from scored_words import drawn_data
from starting_point import starting_point
from transformers import set_seed

from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.noise.kept_evidence import kept
from modeling_gadms.noise.repaired_captions import FEATURE, add_posteriors, count_words, repair_captions
from modeling_gadms.noise.rewriting import AS_FOUND, POSTERIOR, certain, repaired, repaired_with_places
from modeling_gadms.noise.value_reader import ValueReader, train_value_reader
from modeling_gadms.noise.word_families import drawn_families
from modeling_gadms.training.starting_points import load_starting_point

TOWER_RATE = 5e-4  # of the reader's image tower
CELLS = (
    "none",
    "repair",
    "sample",
    "sure",
    "again",
    "unlikely",
    "dropped",
    "deleted",
    "hidden",
    "barred",
    "oracle",
    "true",
)
LEARNT = CELLS[1:7]  # these depend on what was learnt of false words
HIDDEN = {"unlikely": "unlikely_spans", "hidden": "false_spans", "barred": "false_spans"}  # columns of hidden words
LEAST_GAIN = 0.5  # of "sure": the probability that a word gains by giving way
LIKELY = 0.5  # of "unlikely": the least probability of the likeliest word


def rows_with_posteriors(
    noise_rate: float, args: argparse.Namespace, setting: dict[str, Any]
) -> tuple[datasets.Dataset, float]:
    """The training rows with posteriors, and the estimated share of false words."""
    rows = drawn_data(tuple(args.image_size), args.num_persons, noise_rate, DATA_SEED).as_dataset(split="train")
    return read_rows(rows, f"{noise_rate}", args, setting)


def read_rows(
    rows: datasets.Dataset, name: str, args: argparse.Namespace, setting: dict[str, Any]
) -> tuple[datasets.Dataset, float]:
    """Rows with posteriors of a reader that learnt from them, and the share of false words that it estimates."""
    columns = [f"{caption}_{POSTERIOR}" for caption in CAPTIONS]

    def look() -> dict[str, Any]:
        set_seed(0)
        model, processor = load_starting_point(SMALL_CLIP, tuple(args.image_size))
        families = drawn_families()
        options = (model.gadms, processor, rows, families, args.reader_steps, TOWER_RATE)
        reader = kept(
            os.path.join(args.output_dir, f"reader_{name}.safetensors"),
            model.gadms,
            lambda: ValueReader(model.gadms, families),
            lambda: train_value_reader(*options),
        )
        found = add_posteriors(reader, processor, rows, count_words(rows, families))
        return {"share_false": reader.share_false.item(), **found.select_columns(columns).to_dict()}

    cell = kept_cell(os.path.join(args.output_dir, f"posteriors_{name}.json"), setting, look)
    for column in columns:
        rows = rows.add_column(column, cell[column], feature=FEATURE)
    return rows, cell["share_false"]


def read_again(
    rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace, setting: dict[str, Any]
) -> datasets.Dataset:
    """The repaired rows with posteriors of a second reader, which learnt from what the first one has repaired."""
    mended = repair_captions(rows)
    first = [name for name in mended.column_names if name.endswith(f"_{POSTERIOR}") or AS_FOUND in name]
    return read_rows(mended.remove_columns(first), f"{noise_rate}_again", args, setting)[0]


def captions_of(
    cell: str, rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace, setting: dict[str, Any]
) -> datasets.Dataset:
    """The training rows with the cell's captions."""
    if cell in ("none", "sample", "hidden", "barred"):
        return rows
    if cell == "true":
        return drawn_data(tuple(args.image_size), args.num_persons, 0.0, DATA_SEED).as_dataset(split="train")
    if cell == "again":
        rows = read_again(rows, noise_rate, args, setting)
    columns: dict[str, list] = {name: [] for name in CAPTIONS}
    if cell == "unlikely":
        columns |= {f"{name}_{HIDDEN[cell]}": [] for name in CAPTIONS}
    kept_rows = []
    for number, row in enumerate(rows.remove_columns("image")):
        texts = [caption_of(cell, row, name) for name in CAPTIONS]
        fine = list(range(len(CAPTIONS)))
        if cell == "dropped":
            fine = [place for place, name in enumerate(CAPTIONS) if not mostly_doubted(row[f"{name}_{POSTERIOR}"])]
        if not fine:
            continue  # the row has no caption to give
        kept_rows.append(number)
        for place, name in enumerate(CAPTIONS):
            text, spans = texts[place if place in fine else fine[0]]
            columns[name].append(text)
            if cell == "unlikely":
                columns[f"{name}_{HIDDEN[cell]}"].append(spans)
    rows = rows.select(kept_rows).remove_columns(list(CAPTIONS))
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def caption_of(cell: str, row: dict[str, Any], name: str) -> tuple[str, list[list[int]]]:
    """A row's caption as the cell trains on it, and where the words stand that it hides."""
    if cell == "deleted":
        return without_false_words(row, name), []
    if cell == "oracle":
        return repaired(row[name], true_words(row, name)), []
    posterior = row[f"{name}_{POSTERIOR}"]
    if cell == "sure":
        posterior = [one for one in posterior if max(one["probabilities"]) - one["probabilities"][0] >= LEAST_GAIN]
    text, places = repaired_with_places(row[name], posterior)
    doubtful = [max(one["probabilities"]) < LIKELY for one in posterior]
    return text, [list(place) for place, hide in zip(places, doubtful, strict=True) if hide]


def mostly_doubted(posterior: list[dict[str, Any]]) -> bool:
    """Whether more than half of the words that the images show are more likely false than true."""
    return sum(one["probabilities"][0] < 0.5 for one in posterior) > len(posterior) / 2


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


def bar_masked(model: GADMSForPreTraining) -> None:
    """Let no word attend to words that are masked before alignment, instead of reading the mask token there."""
    tower, mask = model.gadms.text_model, model.config.mask_token_id
    forward = tower.forward

    def barred(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any) -> Any:
        return forward(input_ids, attention_mask=(input_ids != mask).long(), **options)

    tower.forward = barred


def train_cell(
    cell: str,
    noise_rate: float,
    seed: int,
    rows: datasets.Dataset,
    args: argparse.Namespace,
    setting: dict[str, Any],
) -> dict:
    """Train on the cell's captions by the recipe of the masking table, and test both ways.

    Nothing is masked but what the cell says is hidden.
    """
    train = captions_of(cell, rows, noise_rate, args, setting)
    size = tuple(args.image_size)
    test = drawn_data(size, args.num_persons, noise_rate, DATA_SEED).as_dataset(split="test")
    model, processor = starting_point(args.from_scratch, seed, size)
    trainer = recipe_trainer(
        "oracle SDM" if cell in HIDDEN else "none",
        seed,
        model,
        processor,
        train,
        test,
        output_dir=os.path.join(args.output_dir, "trainer"),
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        logging_steps=25,
        draw_words=cell == "sample",
        hidden_spans=HIDDEN.get(cell),
    )
    if cell == "barred":
        bar_masked(trainer.model)
    trainer.train()
    trainer.evaluate()
    return hits_by_query(trainer.measured) | {"rows": len(train)}
