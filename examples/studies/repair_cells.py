"""One cell of the repair study: training on its captions, and R@1 both ways."""

import argparse
import os
from typing import Any

import datasets
import numpy as np
import torch
from cell_captions import HIDDEN, captions_of
from masking_cells import DATA_SEED
from recipe import recipe_trainer
from scored_words import drawn_data
from starting_point import starting_point

from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import evaluate_embeddings, query_values
from modeling_gadms.modeling_gadms import GADMSForPreTraining


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
) -> dict:
    """Train on the cell's captions by the recipe of the masking table, and test both ways.

    Nothing is masked but what the cell says is hidden.
    """
    train = captions_of(cell, rows, noise_rate, args)
    size = tuple(args.image_size)
    test = drawn_data(size, args.num_persons, noise_rate, DATA_SEED).as_dataset(split="test")
    model, processor = starting_point(args.from_scratch, seed, size, args.model_name_or_path)
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


def hits_by_query(measured: RetrievalSet) -> dict[str, dict[str, list]]:
    """R@1 of each query of both ways, and whose it is."""
    found = evaluate_embeddings(measured, num_resamples=100)
    values = {way: np.round(query_values(ranks)["R@1"], 3).tolist() for way, ranks in found.ranks.items()}
    return {"values": values, "persons": {way: found.person_ids[way].tolist() for way in values}}
