"""Study: does a bank of training captions help at test time?

    python examples/studies/bank_gain.py                  # six minutes on one core

On drawn persons, each seed with persons of its own: the base, which is not trained on them, and the same after one
epoch. Images are ranked by the cosine, and by three scorings that read the captions of train; their constants are
those with the highest mAP on validation. Each finished seed is kept in --output_dir.
"""

import sys
from typing import Any

import datasets
import numpy as np
from bank_cells import COSINE, METRICS, run
from seeds import add_arguments, runs_of_seeds
from study_report import error_bars, interval, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.caption_bank import BANK_SCORINGS, NNN
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference

TITLE = "Does a bank of training captions help at test time?"
MODELS = {"base": "not trained on these drawings", "trained": "after one epoch on them"}


def summarize(runs: dict[int, dict[str, Any]], model: str) -> dict[str, dict]:
    """The queries of all seeds together; whole persons are resampled."""
    found = [run[model] for run in runs.values()]
    persons = np.concatenate([np.array(one["persons"]) * len(found) + place for place, one in enumerate(found)])
    rows: dict[str, dict] = {}
    for scoring in (COSINE, *BANK_SCORINGS):
        row: dict[str, Any] = {"chosen": [one[scoring]["chosen"] for one in found]}
        row["ms_per_query"] = float(np.mean([one[scoring]["ms_per_query"] for one in found]))
        for metric in METRICS:
            values, plain = (np.concatenate([one[name][metric] for one in found]) for name in (scoring, COSINE))
            row[metric] = vars(bootstrap_interval(values, groups=persons))
            if scoring != COSINE:
                row[metric]["gain"] = vars(paired_difference(values, plain, groups=persons))
        rows[scoring] = row
    return rows


def written(model: str, rows: dict[str, dict], runs: dict[int, dict[str, Any]]) -> str:
    lines = []
    for scoring, row in rows.items():
        line = [scoring]
        for metric in METRICS:
            gain = row[metric].get("gain")
            line += [interval(row[metric]), f"{interval(gain, sign='+')}, p {gain['p_value']:.4f}" if gain else "-"]
        names = ("alpha", "neighbours") if scoring == NNN else ("beta",)
        chosen = [" ".join(f"{one[name]:g}" for name in names) for one in row["chosen"] if one]
        lines.append([*line, "; ".join(chosen) or "-", f"{row['ms_per_query']:.2f}"])
    head = ["scoring", *(part for metric in METRICS for part in (metric, "gain over cosine"))]
    head += ["chosen on validation (alpha k, or beta), by seed", "ms per query"]
    banks = [f"- seed {seed}: {run[model]['bank']}; {run[model]['bank_seconds']:.1f} s" for seed, run in runs.items()]
    what = f"{model}, {MODELS[model]}. The bank, and the time to encode it once:"
    return "\n\n".join([what, "\n".join(banks), table(head, lines)])


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(9, 2.8), layout="constrained", sharey=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, (model, rows) in enumerate(results.items()):
            found = [rows[scoring][metric]["gain"] for scoring in BANK_SCORINGS]
            at = np.arange(len(found)) + 0.3 * place
            means = [one["mean"] for one in found]
            axis.errorbar(means, at, xerr=error_bars(found), fmt="o", capsize=3, label=f"{model}, {MODELS[model]}")
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_yticks(np.arange(len(found)) + 0.15, BANK_SCORINGS)
        axis.set(xlabel=f"gain in {metric}, text to image")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small")
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    add_arguments(parser, "bank_gain", num_persons=1200, epochs=1.0)
    args = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    runs = {}
    for seed, found in runs_of_seeds(args, run):
        runs[seed] = found
        print(seed, {model: found[model]["bank"] for model in MODELS}, flush=True)
    results = {model: summarize(runs, model) for model in MODELS}
    persons = args.num_persons // 2
    facts = f"Seeds {', '.join(map(str, args.seeds))}, {persons} persons in each test set, two images each; "
    facts += f"{args.noise_rate} of the words of train false."
    text = "\n\n".join([facts, *(written(model, rows, runs) for model, rows in results.items())])
    content = {"arguments": vars(args), "results": results}
    save_study("bank_gain", TITLE, content, text, draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
