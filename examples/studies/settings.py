"""Study 3: how retrieval depends on the number of images, the layers that GASS reads, and the two highest rates.

    python examples/studies/settings.py                                        # half an hour on one core

Figures 5, 6 and 7 of the paper in miniature: one setting of the masking table's recipe is changed at a time. Each
finished run is kept in --output_dir; started again, the script continues with the others and writes the table.
"""

import argparse
import os
import sys

import numpy as np
from masking_cells import kept_cell, train_cell
from study_report import RESULTS, error_bars, interval, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import bootstrap_interval

# what is changed: its values, and how an axis shows them; the table's own settings are among the values
SWEEPS = {
    "images": [1_000, 4_000, 16_000, 64_000],
    "layers": [1, 2, 3],
    "alpha_noise": [0.0, 0.1, 0.2, 0.4],
    "alpha_info": [0.1, 0.3, 0.5],
}
LABELS = {"images": "training images", "layers": "last text layers scored, of 3"}
DEFAULTS = {"images": 8_000, "layers": 2, "alpha_noise": 0.2, "alpha_info": 0.3}


def run_name(settings: dict, seed: int) -> str:
    changed = [f"{name}_{value}" for name, value in settings.items() if value != DEFAULTS[name]]
    return "_".join([*changed, f"seed_{seed}.json"])


def run(settings: dict, noise_rate: float, seed: int, args: argparse.Namespace) -> dict:
    """Train once, all captions once; two images show each person."""
    args = argparse.Namespace(**{**vars(args), "num_persons": settings["images"] // 2, "epochs": 1.0})
    alphas = {name: settings[name] for name in ("alpha_noise", "alpha_info")}
    return train_cell("gass both", noise_rate, seed, args, num_layers=settings["layers"], **alphas)


def summarize(runs: list[dict]) -> dict:
    """R@1 and mAP over seeds; intervals resample the persons."""
    # cells of version 0.1 call the hidden share `noise_rate`
    hidden = [run["hidden_rate"] if "hidden_rate" in run else run["noise_rate"] for run in runs]
    found = {"seeds": len(runs), "hidden_rate": float(np.mean(hidden))}
    for metric in ("R@1", "mAP"):
        values = [run["values"][metric] for run in runs]
        found[metric] = vars(bootstrap_interval(np.mean(values, axis=0), groups=runs[0]["persons"]))
        found[metric]["by_seed"] = [float(np.mean(value)) for value in values]
    return found


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.5), layout="constrained")
    for axis, (name, rows) in zip(np.atleast_1d(axes), results.items(), strict=True):
        places = np.arange(len(rows))
        found = [row["R@1"] for row in rows.values()]
        axis.errorbar(places, [one["mean"] for one in found], yerr=error_bars(found), marker="o", capsize=3)
        for place, one in zip(places, found, strict=True):
            axis.plot([place] * len(one["by_seed"]), one["by_seed"], "k.", markersize=4)
        axis.set_xticks(places, [f"{float(value):g}" for value in rows])
        axis.set(xlabel=LABELS.get(name, name), ylabel="text->image R@1")
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="what is varied (default: %(default)s)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="one run per seed (default: %(default)s)")
    parser.add_argument("--noise_rate", type=float, default=0.3, help="share of false words (default: %(default)s)")
    parser.add_argument(
        "--image_size", nargs=2, type=int, default=[64, 32], help="height and width (default: %(default)s)"
    )
    parser.add_argument(
        "--most_images", type=int, default=64_000, help="leave out runs on more images (default: %(default)s)"
    )
    parser.add_argument(
        "--output_dir", default=os.path.join("runs", "settings"), help="keeps finished runs (default: %(default)s)"
    )
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    args = parser.parse_args(arguments)
    results, lines = {}, []
    for name in args.sweeps:
        results[name] = {}
        for value in SWEEPS[name]:
            if name == "images" and value > args.most_images:
                continue
            settings, runs = {**DEFAULTS, name: value}, []
            for seed in args.seeds:
                setting = {**settings, "noise": args.noise_rate, "image_size": args.image_size}
                file = os.path.join(args.output_dir, run_name(settings, seed))
                train = lambda settings=settings, seed=seed: run(settings, args.noise_rate, seed, args)  # noqa: E731
                runs.append(kept_cell(file, setting, train))
                print(name, value, seed, round(float(np.mean(runs[-1]["values"]["R@1"])), 2), flush=True)
            row = results[name][str(value)] = summarize(runs)
            shown = [interval(row[key]) for key in ("R@1", "mAP")]
            spread = ", ".join(f"{one:.2f}" for one in row["R@1"]["by_seed"])
            lines.append([f"{LABELS.get(name, name)}: {value}", *shown, spread, f"{row['hidden_rate']:.3f}"])
    head = ["setting", "R@1", "mAP", "R@1 of each seed", "share hidden before alignment"]
    seeds, normal = ", ".join(map(str, args.seeds)), ", ".join(f"{name} {value}" for name, value in DEFAULTS.items())
    text = (
        f"Text to image, {args.noise_rate} of the training words false, every image seen once, seeds {seeds}. "
        f"What is not named is as in the demo: {normal}.\n\n" + table(head, lines)
    )
    content = {"arguments": vars(args), "defaults": DEFAULTS, "results": results}
    save_study("settings", "How much do the settings matter?", content, text, draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
