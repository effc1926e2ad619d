"""Captions with known false words -> every score of every attribute token."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from masked_scores import barred_differences, masked_differences
from PIL import Image
from scores import contrast_direction, gradient_parts
from tqdm import tqdm

from dataset_webperson import WebPerson
from dataset_webperson.drawn.rows import generate_rows
from modeling_gadms import GADMSForPreTraining, GADMSProcessor
from modeling_gadms.noise.patch_evidence import PatchEvidence
from modeling_gadms.noise.token_trust import decoder_surprise, nearest_patch
from modeling_gadms.token_scores_gadms import minmax
from modeling_gadms.towers_gadms import valid_tokens


def load_rows(image_size: tuple[int, int], num_persons: int, noise_rate: float, seed: int) -> list[dict]:
    """Captioned images of this many persons."""
    options = {
        "image_size": image_size,
        "views_per_person": 1,
        "noise_rate": noise_rate,
        "seed": seed,
    }
    return list(generate_rows("train", 0, num_persons, **options))


def drawn_data(image_size: tuple[int, int], num_persons: int, noise_rate: float, seed: int) -> WebPerson:
    """The synthetic WebPerson, ready to give its splits."""
    options = {"image_size": image_size, "num_train_persons": num_persons, "noise_rate": noise_rate}
    data = WebPerson(config_name="synthetic", seed=seed, **options)
    data.download_and_prepare()
    return data


def label_tokens(
    caption_words: list[dict], offsets: list[tuple[int, int]], valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each token the attribute word it lies in, or -1, and its place among the words between spaces."""
    word, place, end_before = np.full(len(offsets), -1), np.zeros(len(offsets), dtype=int), 0
    for token, (start, end) in enumerate(offsets):
        place[token] = place[token - 1] + (start > end_before) if token else 0
        end_before = end
        for number, attribute_word in enumerate(caption_words):
            if valid[token] and attribute_word["start"] <= start < attribute_word["end"]:
                word[token] = number
    return word, place


def open_images(rows: list[dict]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]


@torch.no_grad()
def score_batch(
    model: GADMSForPreTraining,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    passes: torch.Tensor,
    generator: torch.Generator,
    evidence: dict[str, PatchEvidence],
) -> dict[str, torch.Tensor]:
    """Every score of a batch, `(B, T)` each, high where a token is trusted."""
    gadms, valid = model.gadms, valid_tokens(input_ids)
    image_tokens = gadms.project_image_tokens(gadms.vision_model(pixel_values).last_hidden_state)
    text = gadms.get_text_features(input_ids)
    direction = F.normalize(image_tokens[:, 0], dim=-1)
    contrast = contrast_direction(image_tokens[:, 0], text.pooler_output, gadms.config.temperature)
    towers, depth = (gadms.text_model, gadms.text_projection), len(gadms.text_model.encoder.layers)
    text_tokens = gadms.text_projection(text.last_hidden_state)
    parts = gradient_parts(*towers, direction, input_ids)
    all_layers = gradient_parts(*towers, direction, input_ids, num_layers=depth)
    contrasted = gradient_parts(*towers, contrast, input_ids)
    differences = masked_differences(gadms, input_ids)
    barred, all_barred = (barred_differences(*towers, input_ids, num_layers) for num_layers in (None, depth))
    return {name: one.score(one.keys(pixel_values), input_ids) for name, one in evidence.items()} | {
        "random": torch.rand(input_ids.shape, generator=generator).to(input_ids.device),
        "GASS, paper": gadms.token_scores(pixel_values, input_ids),
        "GASS, all layers": gadms.token_scores(pixel_values, input_ids, num_layers=depth),
        "GASS, released code": gadms.token_scores(pixel_values, input_ids, recipe="released"),
        "GASS's attention alone": parts["attention"],
        "GASS's gradient alone": minmax(F.relu(parts["gradient"]), valid),
        "signed GASS, scaled": minmax(parts["product"], valid),
        "signed GASS": parts["product"],
        "signed GASS, all layers": all_layers["product"],
        "cosine to image": torch.einsum("btd,bd->bt", F.normalize(text_tokens, dim=-1), direction),
        "cosine to patches (NAM)": nearest_patch(text_tokens, image_tokens),
        "per-head evidence": parts["evidence"],
        "per-head evidence, all layers": all_layers["evidence"],
        "per-head evidence, contrasted": contrasted["evidence"],
        "barred drop": torch.einsum("btd,bd->bt", barred, direction),
        "barred drop, all layers": torch.einsum("btd,bd->bt", all_barred, direction),
        "masked drop": torch.einsum("btd,bd->bt", differences, direction),
        "masked drop, contrasted": torch.einsum("btd,bd->bt", differences, contrast),
        "decoder's surprise": decoder_surprise(model, image_tokens, input_ids, passes),
    }


def score_tokens(
    model: GADMSForPreTraining,
    processor: GADMSProcessor,
    rows: list[dict],
    batch_size: int = 100,
    seed: int = 0,
    progress: bool = True,
    evidence: dict[str, PatchEvidence] | None = None,
) -> dict[str, np.ndarray]:
    """All attribute tokens of all captions: a column for each score, "caption", "word", "attribute", "is_false".

    `evidence` has by name what [`PatchEvidence`] is to score them too.
    """
    generator, columns = torch.Generator().manual_seed(seed), {}
    for first in tqdm(range(0, len(rows), batch_size), desc="Scoring captions", disable=not progress):
        part = rows[first : first + batch_size]
        captions = [row["caption1"] for row in part]
        inputs = processor(text=captions, images=open_images(part), return_tensors="pt").to(model.device)
        offsets = processor.tokenizer(captions, return_offsets_mapping=True, padding=True, truncation=True)
        valid, words = valid_tokens(inputs["input_ids"]).cpu().numpy(), [row["caption1_words"] for row in part]
        labels = [label_tokens(*found) for found in zip(words, offsets["offset_mapping"], valid, strict=True)]
        word, place = (np.stack(values) for values in zip(*labels, strict=True))
        passes = torch.from_numpy(place % 4).to(model.device)
        scores = score_batch(model, inputs["pixel_values"], inputs["input_ids"], passes, generator, evidence or {})
        caption, token = np.nonzero(word >= 0)
        found = {name: score.cpu()[caption, token].numpy() for name, score in scores.items()}
        named = [words[c][word[c, t]] for c, t in zip(caption, token, strict=True)]
        found |= {"caption": first + caption, "word": (first + caption) * 100 + word[caption, token]}
        found |= {key: np.array([item[key] for item in named]) for key in ("attribute", "is_false")}
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in columns.items()}


def by_word(columns: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Whole attribute words in the place of tokens: a word's score is the mean of its tokens'."""
    _, first, which, count = np.unique(columns["word"], return_index=True, return_inverse=True, return_counts=True)
    return {key: values[first] for key, values in columns.items()} | {
        name: np.bincount(which, columns[name]) / count for name in names
    }
