"""One cell of the masking table: a kind of masks, the losses that they enter, a share of false words, a seed."""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from cell_masks import SHARES, use_score
from recipe import recipe_trainer
from scored_words import drawn_data
from starting_point import starting_point

from dataset_webperson import DataError
from dataset_webperson.files import write_json
from modeling_gadms.evaluation.metrics import evaluate_embeddings, query_values
from modeling_gadms.modeling_gadms import GADMSModel
from modeling_gadms.noise.patch_evidence import HIDDEN, hide_words, train_patch_evidence
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.training.trainer import GADMSTrainer

EVIDENCE_STEPS, EVIDENCE_TOWER_RATE, LEAST_THRESHOLD = 1200, 5e-4, 0.2
DATA_SEED = 42  # one test set for all cells, so that their queries can be compared one by one


def with_hidden_words(
    rows: datasets.Dataset, noise_rate: float, model: GADMSModel, processor: GADMSProcessor, file: str, setting: dict
) -> datasets.Dataset:
    """The rows with the columns of `hide_words`; what it found is kept in `file`, for all seeds.

    Where a share `r` of the words is false, one of evidence `e` is false with probability `r / exp(e)`, and more
    likely than not below `log(2 r)`: -0.5 at 0.3. At 0.5 that is 0, where words that say nothing are; -0.2 then.
    """
    threshold = max(LEAST_THRESHOLD, -math.log(2 * noise_rate) if noise_rate else math.inf)

    def look() -> dict:
        evidence = train_patch_evidence(model, processor, rows, EVIDENCE_STEPS, EVIDENCE_TOWER_RATE)
        return hide_words(evidence, processor, rows, threshold).select_columns(columns).to_dict()

    columns = [f"{name}_{HIDDEN}" for name in ("caption1", "caption2")]
    setting |= {"steps": EVIDENCE_STEPS, "rate": EVIDENCE_TOWER_RATE, "threshold": threshold}
    kept = kept_cell(file, setting, look)
    for name in columns:
        rows = rows.add_column(name, kept[name])
    return rows


def demo_trainer(
    cell: str,
    noise_rate: float,
    seed: int,
    image_size: Sequence[int],
    num_persons: int,
    start: str | None = None,
    **options: Any,
) -> GADMSTrainer:
    """One recipe from `start`, by default the small CLIP, with the cell's masks; `options` are training arguments."""
    size = tuple(image_size)
    data = drawn_data(size, num_persons, noise_rate, DATA_SEED)
    model, processor = starting_point(False, seed, size, start)
    train, test = (data.as_dataset(split=split) for split in ("train", "test"))
    hidden_spans = {"oracle": "false_spans", "evidence": HIDDEN}.get(cell.split()[0])
    if hidden_spans == HIDDEN:
        setting = {"noise_rate": noise_rate, "num_persons": num_persons, "image_size": list(size), "start": start}
        file = os.path.join(os.path.dirname(options["output_dir"]), f"hidden_words_{noise_rate}.json")
        train = with_hidden_words(train, noise_rate, model.gadms, processor, file, setting)
    return recipe_trainer(cell, seed, model, processor, train, test, hidden_spans=hidden_spans, **options)


def train_cell(
    cell: str,
    noise_rate: float,
    seed: int,
    args: argparse.Namespace,
    num_layers: int | None = None,
    decoder: Mapping[str, torch.Tensor] | None = None,
    start: str | None = None,
    **masking: float,
) -> dict:
    """Train and test once; what each query scored is kept for paired comparisons.

    Args:
        args: `image_size`, `num_persons`, `epochs` and `output_dir`.
        num_layers: last text layers that the scores read; by default two thirds of them.
        decoder: weights that the decoder begins with; by default new ones.
        start: where training begins; by default the small CLIP.
        masking: constants of the masks, as `alpha_noise`.
    """
    trainer = demo_trainer(
        cell,
        noise_rate,
        seed,
        args.image_size,
        args.num_persons,
        start,
        output_dir=os.path.join(args.output_dir, "trainer"),
        num_train_epochs=args.epochs,
        logging_steps=25,
        logging_first_step=True,
        **masking,
    )
    if decoder is not None:
        trainer.model.decoder.load_state_dict(decoder)
    if cell.startswith("cosine") or num_layers is not None:
        use_score(trainer.model, cell, num_layers)
    trainer.train()
    trainer.evaluate()
    found = evaluate_embeddings(trainer.measured, num_resamples=100)
    values = {name: np.round(query_values(found.ranks["t2i"])[name], 3).tolist() for name in ("R@1", "mAP")}
    logged = [entry for entry in trainer.state.log_history if "hidden_rate" in entry]
    rates = {name: float(np.mean([entry[name] for entry in logged])) for name in SHARES} if logged else {}
    return {"steps": trainer.state.global_step, **rates, "values": values, "persons": found.person_ids["t2i"].tolist()}


def kept_cell(file: str, setting: dict, train: Callable[[], dict]) -> dict:
    """What `train()` gives, kept in `file`; read from there where an earlier run of the same setting has left it."""
    if not os.path.exists(file):
        write_json(file, setting | train())
    with open(file, encoding="utf-8") as opened:
        cell = json.load(opened)
    if {name: cell.get(name) for name in setting} != setting:
        raise DataError(f"{file}: was made with another setting than {setting}; choose another --output_dir")
    return cell
