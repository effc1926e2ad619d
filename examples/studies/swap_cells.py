"""One cell of the study of swaps: training with so many swapped captions, and what it gives on galleries and words."""

import argparse
import os
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from masking_cells import DATA_SEED, recipe_trainer
from scored_words import drawn_data, load_rows, open_images
from starting_point import starting_point

from dataset_webperson import WebPerson
from modeling_gadms.evaluation.metrics import evaluate_embeddings, query_values
from modeling_gadms.evaluation.twins import above_twin, twins_of
from modeling_gadms.modeling_gadms import GADMSModel
from modeling_gadms.noise.rewriting import repaired
from modeling_gadms.noise.swaps import certain
from modeling_gadms.noise.word_families import drawn_families, said_words
from modeling_gadms.processing_gadms import GADMSProcessor

CELLS = {"none": 0, "1 swap": 1, "3 swaps": 3}
WORDS_SEED = 1000  # of the captions whose words are scored, of other persons than those of training and test


def twin_gallery(size: tuple[int, int], num_persons: int) -> datasets.Dataset:
    """Test persons, each beside one who differs in a single attribute."""
    persons = {"num_train_persons": 2, "num_validation_persons": 2, "num_test_persons": num_persons}
    data = WebPerson(config_name="synthetic", seed=DATA_SEED, image_size=size, twins=True, **persons)
    data.download_and_prepare()
    return data.as_dataset(split="test")


@torch.no_grad()
def swap_contrast(
    model: GADMSModel, processor: GADMSProcessor, rows: list[dict[str, Any]], batch_size: int = 256
) -> list[float]:
    """How suspicious each attribute word of `caption1` is to the model itself, caption after caption.

    The log odds of its image being described with another value of the word's family, all equally likely, against the
    word that is said: `log mean_v exp(cos(image, caption with v) / temperature) - cos(image, caption) / temperature`.
    A value has its first word.
    """
    families, texts, places = drawn_families(), [], []
    for number, row in enumerate(rows):
        own, caption = len(texts), row["caption1"]
        texts.append(caption)
        for word in said_words(row, "caption1", families):
            others = [words[0] for value, words in families[word.family].values.items() if value != word.value]
            places.append((number, own, len(texts), len(texts) + len(others)))
            texts += [repaired(caption, [certain(word.start, word.end, other)]) for other in others]
    embeds = []
    for first in range(0, len(texts), batch_size):
        inputs = processor(text=texts[first : first + batch_size], return_tensors="pt")
        embeds.append(F.normalize(model.get_text_features(inputs["input_ids"]).pooler_output, dim=-1))
    pixels = processor(images=open_images(rows), return_tensors="pt")["pixel_values"]
    images, captions = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1), torch.cat(embeds)
    found = []
    for image, own, first, last in places:
        logits = (captions[[own, *range(first, last)]] @ images[image]).double() / model.config.temperature
        found.append((logits[1:].logsumexp(dim=0) - np.log(last - first) - logits[0]).item())
    return found


def train_cell(cell: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once without masks, and measure: R@1 both ways, R@1 and accuracy among twins, suspicion of every word."""
    size = tuple(args.image_size)
    data = drawn_data(size, args.num_persons, args.noise_rate, DATA_SEED)
    model, processor = starting_point(args.from_scratch, seed, size)
    train, test = (data.as_dataset(split=split) for split in ("train", "test"))
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
    usual = evaluate_embeddings(trainer.measured, num_resamples=100)
    values = {way: query_values(ranks)["R@1"].round(3).tolist() for way, ranks in usual.ranks.items()}
    persons = {way: usual.person_ids[way].tolist() for way in values}

    twins = twin_gallery(size, args.num_twins)
    trainer.evaluate(twins, metric_key_prefix="twins")
    among = evaluate_embeddings(trainer.measured, num_resamples=100)
    values["twins"] = query_values(among.ranks["t2i"])["R@1"].round(3).tolist()
    values["above"] = above_twin(trainer.measured, twins_of(twins)).tolist()
    persons["twins"] = persons["above"] = (among.person_ids["t2i"] // 2).tolist()  # pairs, which hang together

    rows = load_rows(size, args.num_scored, args.noise_rate, WORDS_SEED)
    said = [(row["person_id"], word) for row in rows for word in row["caption1_words"]]
    words = {
        "person": [person for person, _ in said],
        "attribute": [word["attribute"] for _, word in said],
        "is_false": [word["is_false"] for _, word in said],
        "suspicion": np.round(swap_contrast(trainer.retriever().eval(), processor, rows), 4).tolist(),
    }
    return {"values": values, "persons": persons, "words": words}
