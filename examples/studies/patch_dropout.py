"""What the image tower costs, and what retrieval loses, where a share of each image's patches is left out in training.

    python examples/studies/patch_dropout.py                                    # minutes on one core

The masking table's recipe on drawings, every image seen once, and images whole in the last fifth of the steps. Costs
are operations at ViT-B/16 and 384 x 128 pixels, forward and backward. Finished runs are kept in --output_dir.
"""

import argparse
import os
import sys

import numpy as np
import torch
from masking_cells import kept_cell, train_cell
from step_costs import count_flops
from study_report import RESULTS, error_bars, interval, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSConfig, GADMSModel
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference
from modeling_gadms.vision_gadms import patches_kept


def tower_gflop(share: float, config: GADMSConfig) -> float:
    """Operations per image; nothing is computed, for tensors on `meta` have shapes alone."""
    with torch.device("meta"):
        model = GADMSModel(config)
    kept = round(np.prod(config.vision_config.grid) * (1 - share))
    pixels = torch.empty(1, 3, *config.vision_config.image_size, device="meta")

    def image_pass() -> None:
        with patches_kept(model.vision_model, torch.zeros(1, kept, dtype=torch.int64, device="meta")):
            tokens = model.vision_model(pixels).last_hidden_state
        model.project_image_tokens(tokens).sum().backward()

    return count_flops(image_pass)[0] / 1e9


def trained(share: float, seed: int, args: argparse.Namespace) -> dict:
    setting = {"patch_dropout": share, "seed": seed, "images": args.images, "image_size": args.image_size}
    cell_args = argparse.Namespace(**{**vars(args), "num_persons": args.images // 2, "epochs": 1.0})
    file = os.path.join(args.output_dir, f"share_{share}_seed_{seed}.json")
    return kept_cell(file, setting, lambda: train_cell("gass both", 0.3, seed, cell_args, patch_dropout=share))


def summarize(share: float, runs: list[dict], whole: list[dict]) -> dict:
    """R@1 over seeds, and its difference to whole images on the same queries; intervals resample the persons."""
    values, base = (np.mean([run["values"]["R@1"] for run in some], axis=0) for some in (runs, whole))
    persons = runs[0]["persons"]
    return {
        "gflop": tower_gflop(share, GADMSConfig()),
        "R@1": vars(bootstrap_interval(values, groups=persons)),
        "difference": vars(paired_difference(values, base, groups=persons)),
        "by_seed": [float(np.mean(run["values"]["R@1"])) for run in runs],
    }


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.5], help="left out; first 0 (%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="one run per seed (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4000, help="training images (default: %(default)s)")
    parser.add_argument(
        "--image_size", nargs=2, type=int, default=[64, 32], help="height and width (default: %(default)s)"
    )
    parser.add_argument("--output_dir", default=os.path.join("runs", "patch_dropout"), help="keeps finished runs")
    parser.add_argument("--results_dir", default=RESULTS, help="where the table and the figure go")
    args = parser.parse_args(arguments)
    if args.shares[0] != 0:
        parser.error(f"--shares begins with 0, whole images, which others are compared with; got {args.shares[0]}")
    runs = {share: [trained(share, seed, args) for seed in args.seeds] for share in args.shares}
    results = {str(share): summarize(share, found, runs[0.0]) for share, found in runs.items()}

    head = ["patches left out", "image tower, GFLOP", "R@1", "difference to whole images", "R@1 of each seed"]
    rows = [
        [share, f"{row['gflop']:.1f}", interval(row["R@1"]), interval(row["difference"], sign="+")]
        + [", ".join(f"{one:.2f}" for one in row["by_seed"])]
        for share, row in results.items()
    ]
    text = (
        f"{args.images:,} drawings, 0.3 of the training words false, every image seen once, seeds "
        f"{', '.join(map(str, args.seeds))}; the last fifth of the steps sees whole images. Differences are paired by "
        "query, with 95 % intervals over persons.\n\n" + table(head, rows)
    )
    figure, axis = pyplot.subplots(figsize=(4, 3.5), layout="constrained")
    found = [row["R@1"] for row in results.values()]
    axis.errorbar(args.shares, [one["mean"] for one in found], yerr=error_bars(found), marker="o", capsize=3)
    axis.set(xlabel="share of patches left out", ylabel="text->image R@1")
    content = {"arguments": vars(args), "results": results}
    save_study("patch_dropout", "What does leaving out patches cost?", content, text, figure, args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
