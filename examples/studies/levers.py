"""Study: what are averages of weights, layer-wise decay, the matching head, and phrasings with a bank each worth?

    python examples/studies/levers.py                     # a quarter of an hour on one core

On drawn persons, each seed with persons of its own, the small CLIP is fine-tuned by SDM and identity. One lever is
pulled at a time; what each is compared with is the run without it, at the learning rate that is best for that. All
constants are those of the highest mAP on validation. Each finished seed is kept in --output_dir.
"""

import sys
from typing import Any

import datasets
import numpy as np
from bank_cells import METRICS
from lever_scorings import run
from seeds import add_arguments, runs_of_seeds
from study_report import error_bars, interval, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference

TITLE = "What are averages, layer-wise decay and re-scoring worth?"
# lever -> what it is compared with, and what its constant is
LEVERS = {
    "base": (None, "learning rate"),
    "EMA": ("base", "decay"),
    "soup": ("base", "last checkpoints of 8"),
    "layer decay": ("base", "decay"),
    "matching loss": ("base", ""),
    "re-ranking": ("matching loss", "best images, factor"),
    "phrasings": ("base", ""),
    "bank": ("base", "alpha, k"),
    "phrasings and bank": ("phrasings", "alpha, k"),
}


def summarize(runs: dict[int, dict[str, Any]]) -> dict[str, dict]:
    """The queries of all seeds together; whole persons are resampled."""
    found = list(runs.values())
    persons = np.concatenate([np.array(one["persons"]) * len(found) + place for place, one in enumerate(found)])
    rows: dict[str, dict] = {}
    for lever, (opponent, _) in LEVERS.items():
        row: dict[str, Any] = {"chosen": [one[lever]["chosen"] for one in found]}
        if "ms_per_query" in found[0][lever]:
            row["ms_per_query"] = float(np.mean([one[lever]["ms_per_query"] for one in found]))
        for metric in METRICS:
            values = np.concatenate([one[lever][metric] for one in found])
            row[metric] = vars(bootstrap_interval(values, groups=persons))
            if opponent:
                plain = np.concatenate([one[opponent][metric] for one in found])
                row[metric]["gain"] = vars(paired_difference(values, plain, groups=persons))
        rows[lever] = row
    rows["matching loss"]["longer"] = float(np.mean([one["longer"] for one in found]))
    return rows


def written(rows: dict[str, dict]) -> str:
    lines = []
    for lever, row in rows.items():
        opponent, constant = LEVERS[lever]
        line = [lever, opponent or "-"]
        for metric in METRICS:
            gain = row[metric].get("gain")
            line += [interval(row[metric]), f"{interval(gain, sign='+')}, p {gain['p_value']:.4f}" if gain else "-"]
        chosen = f"{constant}: {'; '.join(row['chosen'])}" if constant else "-"
        costs = [f"{row['ms_per_query']:.2f} ms per query"] if "ms_per_query" in row else []
        costs += [f"{row['longer']:.2f} times the training time"] if "longer" in row else []
        lines.append([*line, chosen, ", ".join(costs) or "-"])
    head = ["lever", "compared with", *(part for metric in METRICS for part in (metric, "gain"))]
    return table([*head, "chosen on validation, by seed", "cost"], lines)


def draw(rows: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(9, 3), layout="constrained", sharey=True)
    levers = [lever for lever, (opponent, _) in LEVERS.items() if opponent]
    for axis, metric in zip(axes, METRICS, strict=True):
        found = [rows[lever][metric]["gain"] for lever in levers]
        places = np.arange(len(levers))
        axis.errorbar([one["mean"] for one in found], places, xerr=error_bars(found), fmt="o", capsize=3)
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_yticks(places, [f"{lever} - {LEVERS[lever][0]}" for lever in levers])
        axis.set(xlabel=f"gain in {metric}, text to image")
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    add_arguments(parser, "levers", num_persons=320, epochs=3.0)
    args = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    runs = {}
    for seed, found in runs_of_seeds(args, run):
        runs[seed] = found
        means = {lever: [round(float(np.mean(found[lever][name])), 2) for name in METRICS] for lever in LEVERS}
        print(seed, means, flush=True)
    results = summarize(runs)
    text = (
        f"Seeds {', '.join(map(str, args.seeds))}, {args.num_persons} persons in each test set, two images each; "
        f"{args.noise_rate} of the words of train false; {args.epochs:g} passes over the captions.\n\n"
        + written(results)
    )
    save_study("levers", TITLE, {"arguments": vars(args), "results": results}, text, draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
