"""One cell of the study of swaps: training with so many swapped captions, and what it gives on galleries and words."""

import argparse
import os
from typing import Any

import datasets
import numpy as np
import torch
from cell_captions import rows_with_posteriors
from masking_cells import DATA_SEED
from recipe import recipe_trainer
from repair_cells import hits_by_query
from scored_words import drawn_data, load_rows, open_images
from starting_point import starting_point

from dataset_webperson import WebPerson
from modeling_gadms.evaluation.encoding import embed_images
from modeling_gadms.evaluation.twins import above_twin, twins_of
from modeling_gadms.modeling_gadms import GADMSModel
from modeling_gadms.noise.caption_trust import swap_contrasts
from modeling_gadms.noise.word_families import drawn_families
from modeling_gadms.processing_gadms import GADMSProcessor

CELLS = {"none": 0, "1 swap": 1, "3 swaps": 3, "1 swap, weighted": 1, "3 swaps, weighted": 3}
WORDS_SEED = 1000  # of the captions whose words are scored, of other persons than those of training and test


def twin_gallery(size: tuple[int, int], num_persons: int) -> datasets.Dataset:
    """Test persons, each beside one who differs in a single attribute."""
    persons = {"num_train_persons": 2, "num_validation_persons": 2, "num_test_persons": num_persons}
    data = WebPerson(config_name="synthetic", seed=DATA_SEED, image_size=size, twins=True, **persons)
    data.download_and_prepare()
    return data.as_dataset(split="test")


def with_posteriors(args: argparse.Namespace) -> datasets.Dataset:
    """The training rows with what a reader of values says of their words, by which swapped copies count."""
    return rows_with_posteriors(args.noise_rate, args)[0]


@torch.no_grad()
def swap_contrast(model: GADMSModel, processor: GADMSProcessor, rows: list[dict[str, Any]]) -> list[float]:
    """How suspicious each attribute word of `caption1` is to the model itself, caption after caption."""
    images = embed_images(model, processor(images=open_images(rows), return_tensors="pt"))
    columns = {name: [row[name] for row in rows] for name in ("caption1", "caption1_words")}
    trust = swap_contrasts(model, processor, images, columns, "caption1", drawn_families())
    return [-odds for of_caption in trust for odds in of_caption]


def train_cell(cell: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once without masks, and measure: R@1 both ways, R@1 and accuracy among twins, suspicion of every word."""
    size = tuple(args.image_size)
    data = drawn_data(size, args.num_persons, args.noise_rate, DATA_SEED)
    model, processor = starting_point(args.from_scratch, seed, size, args.model_name_or_path)
    train, test = (data.as_dataset(split=split) for split in ("train", "test"))
    if cell.endswith("weighted"):
        train = with_posteriors(args)
    trainer = recipe_trainer(
        "none",
        seed,
        model,
        processor,
        train,
        test,
        output_dir=os.path.join(args.output_dir, "trainer"),
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        logging_steps=25,
        swap_negatives=CELLS[cell],
    )
    trainer.train()
    trainer.evaluate()
    measured = hits_by_query(trainer.measured)
    values, persons = measured["values"], measured["persons"]

    twins = twin_gallery(size, args.num_twins)
    trainer.evaluate(twins, metric_key_prefix="twins")
    among = hits_by_query(trainer.measured)
    values["twins"] = among["values"]["t2i"]
    values["above"] = above_twin(trainer.measured, twins_of(twins)).tolist()
    pairs = [person // 2 for person in among["persons"]["t2i"]]  # they hang together
    persons["twins"] = persons["above"] = pairs

    rows = load_rows(size, args.num_scored, args.noise_rate, WORDS_SEED)
    said = [(row["person_id"], word) for row in rows for word in row["caption1_words"]]
    words = {
        "person": [person for person, _ in said],
        "attribute": [word["attribute"] for _, word in said],
        "is_false": [word["is_false"] for _, word in said],
        "suspicion": np.round(swap_contrast(trainer.retriever().eval(), processor, rows), 4).tolist(),
    }
    return {"values": values, "persons": persons, "words": words}
