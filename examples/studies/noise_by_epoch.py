"""Study 1, in training: how well the scores find false words, by epoch and by share of false words.

    python examples/studies/noise_by_epoch.py                                  # 15 minutes on one core

The masking table's recipe, from the small CLIP. Before training and after each epoch, held-out captions as false as
those of training are scored; on training captions the decoder's surprise is averaged over the epochs too.
"""

import argparse
import sys
import tempfile
from typing import Any

import numpy as np
from masking_cells import DATA_SEED, demo_trainer
from noise_detection import quality
from noise_report import shown
from scored_words import load_rows, score_tokens
from study_report import RESULTS, pyplot, save_study, table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSForPreTraining, GADMSProcessor

SHOWN = ["GASS, paper", "GASS, released code", "GASS's gradient alone", "GASS's attention alone"]
SHOWN += ["cosine to image", "cosine to patches (NAM)", "per-head evidence, all layers", "masked drop"]
SURPRISE, SMOOTHED = "decoder's surprise", "decoder's surprise, training captions, mean over epochs"
SHOWN += [SURPRISE, "random"]


class ScoreByEpoch(TrainerCallback):
    """Measures the scores before training and after each epoch."""

    def __init__(self, processor: GADMSProcessor, held_out: list[dict], trained_on: list[dict]) -> None:
        self.processor, self.held_out, self.trained_on = processor, held_out, trained_on
        self.surprises, self.epochs = [], []

    def measure(self, model: GADMSForPreTraining) -> None:
        model.eval()
        columns = score_tokens(model, self.processor, self.held_out, progress=False)
        found = {name: quality(columns, name, num_resamples=100) for name in SHOWN}
        columns = score_tokens(model, self.processor, self.trained_on, progress=False)
        self.surprises.append(columns[SURPRISE])
        columns[SMOOTHED] = np.mean(self.surprises, axis=0)
        self.epochs.append(found | {SMOOTHED: quality(columns, SMOOTHED, num_resamples=100)})
        model.train()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: GADMSForPreTraining | None = None,
        **kwargs: Any,
    ) -> None:
        self.measure(model)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: GADMSForPreTraining | None = None,
        **kwargs: Any,
    ) -> None:
        self.measure(model)


def run(noise_rate: float, args: argparse.Namespace) -> dict:
    """Scores' quality at each epoch, and retrieval before and after."""
    held_out, trained_on = (
        load_rows(tuple(args.image_size), args.num_captions, noise_rate, seed) for seed in (1000, DATA_SEED)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = demo_trainer(
            "gass both",
            noise_rate,
            args.seed,
            args.image_size,
            args.num_persons,
            output_dir=folder,
            num_train_epochs=args.epochs,
            log_level="error",
        )
        callback = ScoreByEpoch(trainer.processing_class, held_out, trained_on)
        trainer.add_callback(callback)
        before = trainer.evaluate()["eval_t2i_R@1"]
        trainer.train()
        after = trainer.evaluate()["eval_t2i_R@1"]
    return {"R@1_before": before, "R@1_after": after, "epochs": callback.epochs}


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 4), layout="constrained", sharey=True)
    for axis, (noise_rate, found) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for name in found["epochs"][0]:
            style = {"color": "black", "linestyle": "--"} if name == SMOOTHED else {}
            axis.plot([epoch[name]["auroc"] for epoch in found["epochs"]], marker=".", label=name, **style)
        axis.axhline(0.5, color="black", linewidth=1)
        axis.set(xlabel="epochs of training", ylabel="AUROC", title=f"{noise_rate} of the words false")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right", fontsize=8)
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--noise_rates",
        nargs="+",
        type=float,
        default=[0.1, 0.3, 0.5],
        help="shares of false words (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=5, help="passes over the images (default: %(default)s)")
    parser.add_argument("--num_persons", type=int, default=2000, help="drawn, two images each (default: %(default)s)")
    parser.add_argument(
        "--num_captions",
        type=int,
        default=300,
        help="captions scored, of held-out and of training images (default: %(default)s)",
    )
    parser.add_argument(
        "--image_size", nargs=2, type=int, default=[64, 32], help="height and width (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides data and training (default: %(default)s)")
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    args = parser.parse_args(arguments)
    results = {noise_rate: run(noise_rate, args) for noise_rate in args.noise_rates}
    texts = []
    for noise_rate, found in results.items():
        head = ["score", *(f"{epoch}" for epoch in range(len(found["epochs"])))]
        lines = [
            [
                name,
                *(f"{epoch[name]['auroc']:.3f}" for epoch in found["epochs"][:-1]),
                shown(found["epochs"][-1][name], "auroc"),
            ]
            for name in found["epochs"][0]
        ]
        retrieval = f"R@1 {found['R@1_before']:.2f} before training, {found['R@1_after']:.2f} after"
        texts.append(f"{noise_rate} of the words false; {retrieval}. AUROC by epoch:\n\n" + table(head, lines))
    text = "Attribute tokens; the last epoch with its 95 % interval over captions.\n\n" + "\n\n".join(texts)
    content = {"arguments": vars(args), "results": results}
    title = "Do token scores find false words as training goes on?"
    save_study("noise_by_epoch", title, content, text, draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
