"""Study: is it better to put the right word in than to leave the false one, and how often is the right one found?

    python examples/studies/repair_gain.py --cells none repair sample deleted oracle true    # two minutes a cell
    python examples/studies/repair_gain.py --seeds 0 1 2              # the other cells as well; finished ones are kept
    python examples/studies/repair_gain.py --only_finished                                      # one table of them all
    python examples/studies/repair_gain.py --from_scratch --epochs 8 --learning_rate 1e-3 --noise_rates 0.5 \\
        --seeds 0 --cells none repair oracle --output_dir runs/repair_scratch                    # ten minutes a cell
    accelerate launch examples/train_small_clip.py --noise_rate 0.5 --output_dir runs/noisy_clip_50
    python examples/studies/repair_gain.py --model_name_or_path runs/noisy_clip_50 --noise_rates 0.5 \\
        --output_dir runs/repair_noisy_50                                    # here nothing has read clean captions

A reader of values, learnt from the noisy captions themselves, gives the probability of each value of a word's family
to be true. In the cells, one recipe trains on

- none: the captions as they are
- repair: each word replaced by the likeliest of its family, as `examples/repair_captions.py --mode repair` does
- sample: words drawn from these probabilities anew in each epoch, as `--mode sample` and `--draw_words` do
- sure: as repair, but only where the probability of being right rises by 0.5 or more
- again: as repair, by a second reader, which learnt from captions that the first one had repaired
- unlikely: as repair, and words are masked before alignment where no value has a probability of 0.5
- dropped: as repair, without captions of which more than half of the words that the reader judges are doubted
- swapped: as repair, but by no reader: by how near the small CLIP finds the image to the caption with each other word
  (it looks for 20 minutes, once for each share)
- deleted, hidden, barred: exactly the false words left out; masked before alignment; in their place, but attended to
  by no other word
- oracle: each false word replaced by the true one; things that are made up stay
- true: captions without a false word, the most that any repair can reach

The small CLIP has read true captions. With --from_scratch the towers begin at random weights, so that captions with
false words are all they have read; the reader begins at the small CLIP, or --model_name_or_path. With a CLIP that has
itself read captions with false words, towers and reader have read no others, and "swapped" asks that CLIP. Each
finished cell, the readers and what they read are kept in --output_dir.
"""

import argparse
import os
import sys

import datasets
import numpy as np
from cell_captions import CELLS, LEARNT, add_reader, reading, rows_with_posteriors
from masking_cells import kept_cell
from repair_cells import train_cell
from repair_report import draw, summarize, written
from repair_words import detection
from seeds import add_recipe
from starting_point import add_model, beginning
from study_report import refuse_unfinished, save_study

from dataset_webperson.command_line import CommandParser, command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--noise_rates", nargs="+", type=float, default=[0.3, 0.5], help="shares of false words")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="one run per seed and cell")
    add_model(parser)
    add_reader(parser)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="captions to train on")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="at its peak (default: %(default)s)")
    parser.add_argument("--from_scratch", action="store_true", help="from random weights, not from the small CLIP")
    parser.add_argument("--only_finished", action="store_true", help="write the table of the cells that exist")
    add_recipe(parser, "repair_gain", num_persons=4000, epochs=1.0)
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.only_finished:
        refuse_unfinished(*(os.path.join(args.output_dir, f"posteriors_{rate}.json") for rate in args.noise_rates))
    datasets.disable_progress_bars()
    os.makedirs(args.output_dir, exist_ok=True)
    names = ("epochs", "num_persons", "image_size", "learning_rate", "from_scratch", "model_name_or_path")
    base = {name: getattr(args, name) for name in names}
    cell_names = ["none", *(cell for cell in CELLS if cell in args.cells and cell != "none")]  # gains are over none
    results, texts = {}, []
    for noise_rate in args.noise_rates:
        rows, share_false = rows_with_posteriors(noise_rate, args)
        words = detection(rows, share_false) | {"share_false": share_false}
        cells = {}
        for cell in cell_names:
            for seed in args.seeds:
                rate = 0.0 if cell == "true" else noise_rate  # one run for all rates
                file = os.path.join(args.output_dir, f"{cell}_{rate}_{seed}.json")
                if args.only_finished and not os.path.exists(file):
                    continue
                setting = base | reading(args) if cell in LEARNT else base
                work = lambda cell=cell, seed=seed: train_cell(cell, noise_rate, seed, rows, args)  # noqa: E731, B023
                cells[cell, seed] = kept_cell(file, setting, work)
                measured = {way: float(np.mean(values)) for way, values in cells[cell, seed]["values"].items()}
                print(cell, noise_rate, seed, measured, flush=True)
        results[str(noise_rate)] = {"words": words, "cells": summarize(cells)}
        texts.append(written(noise_rate, results[str(noise_rate)]["cells"], words))
    content = {"arguments": vars(args), "results": results}
    ending, start = beginning(args)
    title = "Is it better to repair false words than to leave them?" + start
    save_study(f"repair_gain{ending}", title, content, "\n\n".join(texts), draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
