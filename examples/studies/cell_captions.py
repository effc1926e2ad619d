"""The captions that a cell of the repair study trains on: as they are, mended, with words left out, or true."""

import argparse
import os
from typing import Any

import datasets
from masking_cells import DATA_SEED, EVIDENCE_STEPS, kept_cell
from mended_captions import caption_of, mostly_doubted
from repair_words import CAPTIONS
from scored_words import drawn_data
from starting_point import starting_point
from swapped_posteriors import swapped_posteriors

from modeling_gadms.noise.kept_evidence import kept
from modeling_gadms.noise.repaired_captions import FEATURE, add_posteriors, count_words, repair_captions
from modeling_gadms.noise.rewriting import AS_FOUND, POSTERIOR
from modeling_gadms.noise.value_reader import ValueReader, train_value_reader
from modeling_gadms.noise.word_families import drawn_families

CELLS = (
    "none",
    "repair",
    "sample",
    "sure",
    "again",
    "unlikely",
    "dropped",
    "swapped",
    "deleted",
    "hidden",
    "barred",
    "oracle",
    "true",
)
LEARNT = "repair", "sample", "sure", "again", "unlikely", "dropped"  # these depend on what the reader has learnt
HIDDEN = {"unlikely": "unlikely_spans", "hidden": "false_spans", "barred": "false_spans"}  # columns of hidden words


def add_reader(parser: argparse.ArgumentParser) -> None:
    """The options of what a study reads values with."""
    parser.add_argument("--reader_steps", type=int, default=EVIDENCE_STEPS, help="batches that the reader learns from")
    parser.add_argument(
        "--tower_learning_rate", type=float, default=5e-4, help="of its image tower; a large one wants less"
    )


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """What the posteriors depend on."""
    names = ("num_persons", "image_size", "reader_steps", "tower_learning_rate", "model_name_or_path")
    return {name: getattr(args, name) for name in names}


def rows_with_posteriors(noise_rate: float, args: argparse.Namespace) -> tuple[datasets.Dataset, float]:
    """The training rows with posteriors, and the estimated share of false words."""
    rows = drawn_data(tuple(args.image_size), args.num_persons, noise_rate, DATA_SEED).as_dataset(split="train")
    return read_rows(rows, f"{noise_rate}", args)


def read_rows(rows: datasets.Dataset, name: str, args: argparse.Namespace) -> tuple[datasets.Dataset, float]:
    """Rows with posteriors of a reader that learnt from them, and the share of false words that it estimates."""
    columns = [f"{caption}_{POSTERIOR}" for caption in CAPTIONS]

    def look() -> dict[str, Any]:
        model, processor = starting_point(False, 0, tuple(args.image_size), args.model_name_or_path)
        families = drawn_families()
        options = (model.gadms, processor, rows, families, args.reader_steps, args.tower_learning_rate)
        reader = kept(
            os.path.join(args.output_dir, f"reader_{name}.safetensors"),
            model.gadms,
            lambda: ValueReader(model.gadms, families),
            lambda: train_value_reader(*options),
        )
        found = add_posteriors(reader, processor, rows, count_words(rows, families))
        return {"share_false": reader.share_false.item(), **found.select_columns(columns).to_dict()}

    cell = kept_cell(os.path.join(args.output_dir, f"posteriors_{name}.json"), reading(args), look)
    for column in columns:
        rows = rows.add_column(column, cell[column], feature=FEATURE)
    return rows, cell["share_false"]


def read_again(rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace) -> datasets.Dataset:
    """The repaired rows with posteriors of a second reader, which learnt from what the first one has repaired."""
    mended = repair_captions(rows)
    first = [name for name in mended.column_names if name.endswith(f"_{POSTERIOR}") or AS_FOUND in name]
    return read_rows(mended.remove_columns(first), f"{noise_rate}_again", args)[0]


def swapped_rows(rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace) -> datasets.Dataset:
    """The rows with posteriors by swap contrast under the model that training begins at."""

    def look() -> dict[str, Any]:
        model, processor = starting_point(False, 0, tuple(args.image_size), args.model_name_or_path)
        return swapped_posteriors(model.gadms.eval(), processor, rows, drawn_families(), noise_rate)

    setting = {name: getattr(args, name) for name in ("num_persons", "image_size", "model_name_or_path")}
    cell = kept_cell(os.path.join(args.output_dir, f"swapped_{noise_rate}.json"), setting, look)
    for column in [f"{caption}_{POSTERIOR}" for caption in CAPTIONS]:
        rows = rows.remove_columns(column).add_column(column, cell[column], feature=FEATURE)
    return rows


def captions_of(cell: str, rows: datasets.Dataset, noise_rate: float, args: argparse.Namespace) -> datasets.Dataset:
    """The training rows with the cell's captions."""
    if cell in ("none", "sample", "hidden", "barred"):
        return rows
    if cell == "true":
        return drawn_data(tuple(args.image_size), args.num_persons, 0.0, DATA_SEED).as_dataset(split="train")
    if cell == "again":
        rows = read_again(rows, noise_rate, args)
    if cell == "swapped":
        rows = swapped_rows(rows, noise_rate, args)
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
