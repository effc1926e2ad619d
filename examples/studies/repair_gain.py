"""Study: is it better to put the right word in than to leave the false one, and how often is the right one found?

    python examples/studies/repair_gain.py          # reads values, 4 min, then six cells, a minute each and seed

A reader of values, learnt from the noisy captions themselves, gives the probability of each value of a word's family
to be true. In the cells, one recipe trains on

- none: the captions as they are
- repair: each word replaced by the likeliest of its family, as `examples/repair_captions.py --mode repair` does
- sample: words drawn from these probabilities anew in each epoch, as `--mode sample` and `--draw_words` do
- deleted: exactly the false words left out
- oracle: each false word replaced by the true one; things that are made up stay
- true: captions without a false word, the most that any repair can reach

Each finished cell, the reader and what it read are kept in --output_dir.
"""

import argparse
import os
import sys

import datasets
import numpy as np
from masking_cells import EVIDENCE_STEPS, kept_cell
from repair_cells import CELLS, LEARNT, TOWER_RATE, rows_with_posteriors, train_cell
from repair_words import detection
from seeds import add_recipe
from study_report import error_bars, interval, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference

SHARES = {
    "right_before": "right as said",
    "right_after": "right once repaired",
    "changed": "changed",
    "false_of_changed": "of these false",
    "right_of_changed": "of these now right",
}
WAYS = {"t2i": "text to image", "i2t": "image to text"}


def summarize(cells: dict[tuple[str, int], dict]) -> dict:
    """R@1 of each cell and way over the seeds, and its gain over none; whole persons are resampled."""
    rows: dict[str, dict] = {}
    for cell in CELLS:
        runs = {seed: run for (name, seed), run in cells.items() if name == cell}
        rows[cell] = {"seeds": sorted(runs)}
        for way in WAYS:
            groups = next(iter(runs.values()))["persons"][way]
            values = np.mean([run["values"][way] for run in runs.values()], axis=0)
            rows[cell][way] = vars(bootstrap_interval(values, groups=groups))
            if cell != "none":
                plain = np.mean([cells["none", seed]["values"][way] for seed in runs], axis=0)
                rows[cell][way]["gain"] = vars(paired_difference(values, plain, groups=groups))
    return rows


def written(noise_rate: float, rows: dict, words: dict) -> str:
    """Both tables of a noise rate."""
    lines = []
    for cell, row in rows.items():
        line = [cell, len(row["seeds"])]
        for way in WAYS:
            gain = row[way].get("gain")
            line += [interval(row[way]), f"{interval(gain, sign='+')}, p {gain['p_value']:.3f}" if gain else "-"]
        lines.append(line)
    head = ["captions", "seeds", *(part for way in WAYS.values() for part in (f"R@1, {way}", "gain over none"))]
    found = [
        [name, interval(one["posterior"], 3), *(f"{one[key]:.3f}" for key in SHARES)]
        for name, one in words["groups"].items()
    ]
    titles = ["words", "AUROC", *SHARES.values()]
    return (
        f"{noise_rate} of the words false; estimated: {words['share_false']:.2f}. Expected calibration error of the "
        f"posterior: {words['calibration_error']:.3f}.\n\n{table(titles, found)}\n\n{table(head, lines)}"
    )


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(results), figsize=(6 * len(results), 3), layout="constrained", squeeze=False)
    for axis, (noise_rate, one) in zip(axes[0], results.items(), strict=True):
        rows = one["cells"]
        for place, way in enumerate(WAYS):
            found = [row[way] for row in rows.values()]
            at = np.arange(len(rows)) + 0.4 * place
            axis.barh(at, [row["mean"] for row in found], 0.35, xerr=error_bars(found), label=WAYS[way], alpha=0.6)
        axis.set_yticks(np.arange(len(rows)) + 0.2, list(rows))
        axis.set(xlabel="R@1", title=f"{noise_rate} of words false", xlim=(50, None))
        axis.invert_yaxis()
    axes[0][0].legend(loc="lower left")
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--noise_rates", nargs="+", type=float, default=[0.3, 0.5], help="shares of false words")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="one run per seed and cell")
    parser.add_argument("--reader_steps", type=int, default=EVIDENCE_STEPS, help="batches that the reader learns from")
    add_recipe(parser, "repair_gain", num_persons=4000, epochs=1.0)
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    datasets.disable_progress_bars()
    os.makedirs(args.output_dir, exist_ok=True)
    base = {name: getattr(args, name) for name in ("epochs", "num_persons", "image_size")}
    learnt = base | {"reader_steps": args.reader_steps, "tower_learning_rate": TOWER_RATE}
    results, texts = {}, []
    for noise_rate in args.noise_rates:
        rows, share_false = rows_with_posteriors(noise_rate, args, learnt)
        words = detection(rows) | {"share_false": share_false}
        cells = {}
        for seed in args.seeds:
            for cell in CELLS:
                rate = 0.0 if cell == "true" else noise_rate  # one run for all rates
                file = os.path.join(args.output_dir, f"{cell}_{rate}_{seed}.json")
                setting = learnt if cell in LEARNT else base
                work = lambda cell=cell, seed=seed: train_cell(cell, noise_rate, seed, rows, args)  # noqa: E731, B023
                cells[cell, seed] = kept_cell(file, setting, work)
                measured = {way: float(np.mean(values)) for way, values in cells[cell, seed]["values"].items()}
                print(cell, noise_rate, seed, measured, flush=True)
        results[str(noise_rate)] = {"words": words, "cells": summarize(cells)}
        texts.append(written(noise_rate, results[str(noise_rate)]["cells"], words))
    content = {"arguments": vars(args), "results": results}
    title = "Is it better to repair false words than to leave them?"
    save_study("repair_gain", title, content, "\n\n".join(texts), draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
