"""One seed of the study of levers: what each caption of test scores with each of them, and what it costs."""

import argparse
import copy
import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from bank_cells import METRICS, by_cosine
from starting_point import SMALL_CLIP
from transformers import TrainerCallback, set_seed

from dataset_webperson import WebPerson
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_retrieval_set
from modeling_gadms.evaluation.metrics import query_values
from modeling_gadms.evaluation.models import Retriever
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.person_retrieval.ranking import QueryRanks
from modeling_gadms.training.averaging import WeightAverage, mean_of_weights
from modeling_gadms.training.starting_points import load_starting_point

RATES, LAYER_DECAYS = (5e-5, 1e-4, 2e-4), (0.85, 0.7)
EMA_DECAYS, SOUPS = (0.8, 0.9, 0.95), (2, 3, 4)
DECODER_LAYERS, CHECKPOINTS = 1, 8  # of the decoder that the head sits on; checkpoints per run, the last its end


class Found(NamedTuple):
    """Where the captions of validation and of test find their images, by which constant."""

    validation: QueryRanks
    test: QueryRanks
    chosen: str

    def quality(self) -> float:
        return self.validation.average_precision.mean()


class Checkpoints(TrainerCallback):
    """Copies of the retriever, evenly spread over the steps."""

    def __init__(self) -> None:
        self.models: list[torch.nn.Module] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step * CHECKPOINTS // state.max_steps > len(self.models):
            self.models.append(copy.deepcopy(model.gadms))


class Seed:
    """The data of one seed, and what is measured on them."""

    def __init__(self, seed: int, args: argparse.Namespace) -> None:
        self.seed, self.args, persons = seed, args, args.num_persons
        sizes = {"num_train_persons": persons, "num_validation_persons": persons // 2, "num_test_persons": persons}
        size = tuple(args.image_size)
        data = WebPerson(config_name="synthetic", seed=seed, image_size=size, noise_rate=args.noise_rate, **sizes)
        data.download_and_prepare()
        self.rows = {split: data.as_dataset(split=split) for split in ("train", "validation", "test")}

    def train(self, *callbacks: TrainerCallback, **options: Any) -> tuple[GADMSForFineTuning, float]:
        """Fine-tune the small CLIP without masks; the model and the seconds of one core it took."""
        args = self.args
        set_seed(self.seed)
        head = options.get("matching_weight", 0.0) > 0
        start, self.processor = load_starting_point(SMALL_CLIP, tuple(args.image_size), head)
        start.config.decoder_num_layers = DECODER_LAYERS
        start.decoder.encoder.layers = start.decoder.encoder.layers[:DECODER_LAYERS]
        model = GADMSForFineTuning.from_pre_training(start, args.num_persons)
        training = GADMSFineTuningArguments(
            output_dir=os.path.join(args.output_dir, "trainer"),
            seed=self.seed,
            masking="none",
            new_module_factor=10.0,
            num_train_epochs=args.epochs,
            warmup_epochs=0.3,
            adam_epsilon=1e-8,
            crop_padding=2,
            erasing_probability=0.0,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        trainer = GADMSFineTuningTrainer(
            model, training, self.processor, train_dataset=self.rows["train"], callbacks=list(callbacks)
        )
        begin = time.process_time()
        trainer.train()
        return model.eval(), time.process_time() - begin

    def encode(self, model: Retriever) -> list[RetrievalSet]:
        """Validation and test."""
        splits = (self.rows[split] for split in ("validation", "test"))
        return [encode_retrieval_set(model, self.processor, rows, progress=False) for rows in splits]

    def plain(self, model: Retriever, chosen: str) -> Found:
        return Found(*map(by_cosine, self.encode(model)), chosen)


def best(found: list[Found]) -> Found:
    return max(found, key=Found.quality)


def kept(found: Found, **costs: float) -> dict[str, Any]:
    """What a lever leaves: its constant, each query's value on test, and its costs."""
    values = query_values(found.test)
    return {"chosen": found.chosen, **costs, **{name: np.round(values[name], 3).tolist() for name in METRICS}}


def trained(data: Seed) -> tuple[dict[str, Any], GADMSForFineTuning, float, float]:
    """Every lever of training; the model without any, its rate, and the seconds of one core it took."""
    found: dict[str, Any] = {}
    runs = []
    for rate in RATES:
        averages, checkpoints = [WeightAverage(decay) for decay in EMA_DECAYS], Checkpoints()
        model, seconds = data.train(*averages, checkpoints, learning_rate=rate)
        runs.append((data.plain(model.gadms, f"{rate:g}"), rate, model, averages, checkpoints, seconds))
    base, rate, model, averages, checkpoints, seconds = max(runs, key=lambda one: one[0].quality())
    found["base"] = kept(base)

    averaged = []
    for average, decay in zip(averages, EMA_DECAYS, strict=True):
        with average.in_place_of(model):
            averaged.append(data.plain(model.gadms, f"{decay:g}"))
    found["EMA"] = kept(best(averaged))
    soups, mean = [], copy.deepcopy(model.gadms)
    for count in SOUPS:
        mean.load_state_dict(mean_of_weights(checkpoints.models[-count:]))
        soups.append(data.plain(mean, str(count)))
    found["soup"] = kept(best(soups))

    decayed = [data.train(learning_rate=rate, layer_decay=decay)[0] for decay in LAYER_DECAYS]
    plain = [data.plain(one.gadms, f"{d:g}") for one, d in zip(decayed, LAYER_DECAYS, strict=True)]
    found["layer decay"] = kept(best(plain))

    return found, model, rate, seconds
