"""Study: does training against captions with one word swapped help to tell persons, and false words?

    python examples/studies/swap_gain.py                       # a reader and fifteen trainings, minutes each
    python examples/studies/swap_gain.py --from_scratch --epochs 8 --learning_rate 1e-3 --output_dir runs/swap_scratch

One recipe without masks, on captions of which 30 % of the attribute words are false, in the cells

- none: the captions as they are
- 1 swap, 3 swaps: as many copies of each caption, one word of each swapped for another of its family, as negatives of
  the caption's own image (`--swap_negatives`)
- weighted: the same, and a copy counts by how likely its word is false, says a reader of values that learnt from the
  captions; without it, a copy whose swap puts the true word in for a false one is a negative too

R@1 on the usual test persons, and text to image on twins: test persons each beside one who differs in one attribute,
which the captions name. Words: whether the model itself tells false ones, by how much nearer its image is to the
caption with another value than to the caption as it is. Finished cells are kept in --output_dir.
"""

import argparse
import os
import sys

import datasets
import numpy as np
from cell_captions import add_reader
from masking_cells import kept_cell
from seeds import add_recipe
from starting_point import add_model, beginning
from study_report import error_bars, interval, pyplot, save_study, table
from swap_cells import CELLS, train_cell
from swap_words import word_quality

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference

MEASURES = {
    "t2i": "R@1, text to image",
    "i2t": "R@1, image to text",
    "twins": "R@1 among twins",
    "above": "own person above the twin",
}


def summarize(cells: dict[tuple[str, int], dict], seeds: list[int]) -> dict[str, dict]:
    """Each measure of each cell over the seeds, and its gain over none; whole persons, or pairs, are resampled."""
    rows: dict[str, dict] = {}
    plain = [cells["none", seed] for seed in seeds]
    for cell in CELLS:
        runs = [cells[cell, seed] for seed in seeds]
        rows[cell] = {"words": word_quality(runs, plain)}
        for measure in MEASURES:
            groups = runs[0]["persons"][measure]
            values, before = (np.mean([run["values"][measure] for run in each], axis=0) for each in (runs, plain))
            gain = vars(paired_difference(values, before, groups=groups))
            rows[cell][measure] = vars(bootstrap_interval(values, groups=groups)) | {"gain": gain}
    return rows


def written(args: argparse.Namespace, rows: dict[str, dict]) -> str:
    def line(cell: str, found: list[dict], digits: int) -> list[str]:
        gains = [interval(one["gain"], digits, "+") if cell != "none" else "-" for one in found]
        return [
            cell,
            *(part for one, gain in zip(found, gains, strict=True) for part in (interval(one, digits), gain)),
        ]

    start = "random weights" if args.from_scratch else args.model_name_or_path or "the small CLIP"
    galleries = [line(cell, [row[measure] for measure in MEASURES], 2) for cell, row in rows.items()]
    words = [line(cell, list(row["words"].values()), 3) for cell, row in rows.items()]
    kinds = [f"AUROC, {name}" for name in rows["none"]["words"]]
    heads = [
        ["training", *(part for name in names for part in (name, "gain"))] for names in (MEASURES.values(), kinds)
    ]
    return (
        f"{args.noise_rate} of the words false, {args.epochs:g} passes from {start}, seeds "
        f"{', '.join(map(str, args.seeds))}.\n\n{table(heads[0], galleries)}\n\n{table(heads[1], words)}"
    )


def draw(rows: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(15, 2.5), layout="constrained", sharey=True)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        found = [row[measure] for row in rows.values()]
        axis.errorbar([one["mean"] for one in found], list(rows), xerr=error_bars(found), fmt="o", capsize=3)
        axis.set(title=title)
    axes[0].invert_yaxis()
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed and cell")
    parser.add_argument("--noise_rate", type=float, default=0.3, help="share of false words (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="at its peak (default: %(default)s)")
    parser.add_argument("--from_scratch", action="store_true", help="from random weights, not from the small CLIP")
    parser.add_argument("--num_twins", type=int, default=400, help="persons of the gallery of twins (even)")
    parser.add_argument("--num_scored", type=int, default=300, help="captions whose words are scored")
    add_model(parser)
    add_reader(parser)
    add_recipe(parser, "swap_gain", num_persons=4000, epochs=1.0)
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    datasets.disable_progress_bars()
    os.makedirs(args.output_dir, exist_ok=True)
    setting = {name: value for name, value in vars(args).items() if name not in ("seeds", "output_dir", "results_dir")}
    cells = {}
    for seed in args.seeds:
        for cell in CELLS:
            file = os.path.join(args.output_dir, f"{cell.replace(' ', '_')}_{seed}.json")
            work = lambda cell=cell, seed=seed: train_cell(cell, seed, args)  # noqa: E731
            cells[cell, seed] = kept_cell(file, setting, work)
            print(
                cell, seed, {name: float(np.mean(cells[cell, seed]["values"][name])) for name in MEASURES}, flush=True
            )
    results = summarize(cells, args.seeds)
    ending, start = beginning(args)
    title = "Does training against swapped words tell persons apart?" + start
    content = {"arguments": vars(args), "results": results}
    save_study(f"swap_gain{ending}", title, content, written(args, results), draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
