"""One cell of the masking table: a kind of masks, the losses that they enter, a share of false words, a seed."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scored_words import encode_images, learn_patch_evidence, load_rows
from transformers import set_seed

from dataset_webperson import WebPerson
from modeling_gadms.data_collator import PairCollator, pick_caption
from modeling_gadms.evaluation import evaluate_embeddings, query_values
from modeling_gadms.masking_gadms import RandomMasking
from modeling_gadms.run_report import save_json
from modeling_gadms.starting_points import load_starting_point
from modeling_gadms.token_scores_gadms import gradient_attention_scores, minmax, valid_tokens
from modeling_gadms.trainer import GADMSTrainer
from modeling_gadms.training_arguments import GADMSTrainingArguments

SMALL_CLIP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "small_clip")
SCORES = "random", "cosine", "gass"
CELLS = [
    "none",
    "oracle SDM",
    "evidence SDM",
    *(f"{score} {parts}" for score in SCORES for parts in ("SDM", "MTP", "both")),
]
SCORES_IN_TRAINING = "modeling_gadms.modeling_gadms.gradient_attention_scores"  # where the model finds them
SHARES = "noise_rate", "prediction_rate"
RATES = 0.16, 0.065  # shares of words that GASS hides and predicts in the demo, as logged in training
EVIDENCE_STEPS = 1500
DATA_SEED = 42  # one test set for all cells, so that their queries can be compared one by one


@dataclass(frozen=True)
class RandomDualMasking(RandomMasking):
    """Two masks as the paper's, at constant rates."""

    noise: float = 0.0

    def noise_probability(self, scores):
        return scores + self.noise  # without scores, these are zeros


@dataclass
class StudyArguments(GADMSTrainingArguments):
    cell: str = field(default="none", metadata={"help": "Masking and the losses that it enters."})

    def masks(self):
        kind, parts = self.cell.split()[0], self.cell.split()[-1]
        if kind == "none":
            return None
        if kind in ("gass", "cosine"):
            masks = super().masks()
            return replace(masks, alpha_noise=0.0) if parts == "MTP" else masks
        # the noise mask of these two comes from their collator alone
        return RandomDualMasking(RATES[1], noise=RATES[0] if kind == "random" and parts != "MTP" else 0.0)


@dataclass
class HidingCollator(PairCollator):
    """Draws -1, which is below every probability, for the noise mask of the tokens that `hidden` names."""

    def hidden(self, row, name) -> np.ndarray:
        """Places of tokens in the caption `row[name]`."""
        raise NotImplementedError

    def __call__(self, rows):
        batch = super().__call__(rows)
        for row, uniforms in zip(rows, batch["mask_uniforms"], strict=True):
            caption = pick_caption(row)
            name = next(name for name in ("caption1", "caption2") if row[name] == caption)
            uniforms[0, self.hidden(row, name)] = -1.0
        return batch


@dataclass
class OracleCollator(HidingCollator):
    """Hides every false word."""

    def hidden(self, row, name):
        offsets = self.processor.tokenizer(row[name], return_offsets_mapping=True, truncation=True)["offset_mapping"]
        spans = row[f"{name}_false_spans"]
        return np.array([token for token, (start, _) in enumerate(offsets) if in_spans(start, spans)], dtype=int)


def in_spans(place, spans) -> bool:
    return any(low <= place < high for low, high in spans)


@dataclass
class EvidenceCollator(HidingCollator):
    """Hides the tokens of the least patch evidence; `places` has those of each image's captions."""

    places: dict = field(default_factory=dict)

    def hidden(self, row, name):
        return self.places[row["image_path"], name]


@torch.no_grad()
def places_of_least_evidence(model, processor, rows, share, steps) -> dict:
    """`{(image_path, "caption1"): places of tokens}`: of all captions' tokens, the share that has the least evidence.

    A head learns from these captions, false words included, on the image tokens of the model as it is before training.
    """
    tokens = encode_images(model.eval(), processor, rows)
    with torch.enable_grad():
        head = learn_patch_evidence(model, processor, rows, tokens, steps)
    found = {}
    for first in range(0, len(rows), 100):
        part, image_tokens = rows[first : first + 100], tokens[first : first + 100]
        for name in ("caption1", "caption2"):
            ids = processor(text=[row[name] for row in part], return_tensors="pt")["input_ids"]
            scores = head.score(image_tokens, ids).masked_fill(~valid_tokens(ids), torch.inf)
            found |= {(row["image_path"], name): score for row, score in zip(part, scores, strict=True)}
    every = torch.cat([score[score.isfinite()] for score in found.values()])
    limit = every.kthvalue(max(1, round(share * len(every)))).values
    return {key: (score <= limit).nonzero()[:, 0].numpy() for key, score in found.items()}


@torch.no_grad()
def cosine_scores(text_model, text_projection, image_embeds, input_ids):
    """NAM's score in the place of GASS: cosine of each projected token to the image, scaled within the caption."""
    tokens = F.normalize(text_projection(text_model(input_ids).last_hidden_state), dim=-1)
    cosines = (tokens @ F.normalize(image_embeds, dim=-1)[..., None]).squeeze(-1)
    return minmax(cosines.float(), valid_tokens(input_ids))


def scores_of(cell, num_layers):
    """A context in which the model scores tokens as the cell says."""
    if cell.startswith("cosine"):
        return mock.patch(SCORES_IN_TRAINING, cosine_scores)
    if num_layers is not None:
        return mock.patch(SCORES_IN_TRAINING, partial(gradient_attention_scores, num_layers=num_layers))
    return nullcontext()


def demo_trainer(cell, noise_rate, seed, image_size, num_persons, **options) -> GADMSTrainer:
    """The demo's recipe from the small CLIP, with the cell's masks; `options` are further training arguments."""
    size = tuple(image_size)
    data = WebPerson(
        config_name="synthetic", seed=DATA_SEED, image_size=size, num_train_persons=num_persons, noise_rate=noise_rate
    )
    data.download_and_prepare()
    set_seed(seed)
    model, processor = load_starting_point(SMALL_CLIP, size)
    training = StudyArguments(
        cell=cell,
        seed=seed,
        mtp_weight=0.0 if cell.endswith("SDM") else 0.4,
        adam_epsilon=1e-8,
        warmup_epochs=0.5,
        crop_padding=2,
        erasing_probability=0.0,
        per_device_eval_batch_size=128,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    train, test = (data.as_dataset(split=split) for split in ("train", "test"))
    return GADMSTrainer(model, training, processor, train_dataset=train, eval_dataset=test)


def train_cell(cell, noise_rate, seed, args, num_layers=None, **masking) -> dict:
    """Train and test once; what each query scored is kept for paired comparisons.

    Args:
        args: `image_size`, `num_persons`, `epochs` and `output_dir`.
        num_layers: last text layers that the scores read; two thirds of them by default.
        masking: constants of the masks, as `alpha_noise`.
    """
    trainer = demo_trainer(
        cell,
        noise_rate,
        seed,
        args.image_size,
        args.num_persons,
        output_dir=os.path.join(args.output_dir, "trainer"),
        num_train_epochs=args.epochs,
        logging_steps=25,
        logging_first_step=True,
        **masking,
    )
    parts = vars(trainer.data_collator)
    if cell.startswith("oracle"):
        trainer.data_collator = OracleCollator(**parts)
    elif cell.startswith("evidence"):
        rows = load_rows(tuple(args.image_size), args.num_persons, noise_rate, DATA_SEED, views_per_person=2)
        places = places_of_least_evidence(trainer.model, trainer.processing_class, rows, RATES[0], EVIDENCE_STEPS)
        trainer.data_collator = EvidenceCollator(**parts, places=places)
    with scores_of(cell, num_layers):
        trainer.train()
    trainer.evaluate()
    found = evaluate_embeddings(trainer.measured, num_resamples=100)
    values = {name: np.round(query_values(found.ranks["t2i"])[name], 3).tolist() for name in ("R@1", "mAP")}
    logged = [entry for entry in trainer.state.log_history if "noise_rate" in entry]
    rates = {name: float(np.mean([entry[name] for entry in logged])) for name in SHARES} if logged else {}
    return {"steps": trainer.state.global_step, **rates, "values": values, "persons": found.person_ids["t2i"].tolist()}


def kept_cell(file, setting: dict, train) -> dict:
    """What `train()` gives, kept in `file`; read from there where an earlier run of the same setting has left it."""
    if not os.path.exists(file):
        save_json(setting | train(), file)
    with open(file, encoding="utf-8") as opened:
        cell = json.load(opened)
    if {name: cell.get(name) for name in setting} != setting:
        raise SystemExit(f"{file} was trained otherwise ({setting} is asked for): choose another --output_dir")
    return cell
