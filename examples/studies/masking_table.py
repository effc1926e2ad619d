"""Study 2: the paper's Table 4 in miniature: which masking helps retrieval, and in which of the two losses?

    python examples/studies/masking_table.py --noise_rates 0.0 --cells none             # a minute or two for each cell
    python examples/studies/masking_table.py --noise_rates 0.3 0.5
    python examples/studies/masking_table.py --noise_rates 0.0 0.3 0.5 --only_finished  # one table
    python examples/studies/masking_table.py --noise_rates 0.3 --epochs 4 --decoder_epochs 8 \\
        --cells none "random MTP" "gass MTP" --output_dir runs/warm_decoder             # minutes for each

From the same model, by default the small CLIP, the same number of steps on drawn pedestrians with false words, tested
on the same persons:

- none: alignment (SDM) on whole captions, no masks
- random: as GASS, but every word is as likely to be masked as any other, at the rates that GASS ends up with
- cosine: the paper's masks, from NAM's score: the cosine of a token to the image
- evidence: what speaks against its image by patch evidence, as `repair_captions.py --mode hide` finds it, is hidden
- gass: the paper's masks; oracle: every false word, and no other, is hidden before alignment

With --decoder_epochs a decoder that has learnt to predict words of the same captions, while the towers stayed as they
are, takes the place of a new one in every cell: a new one needs more steps than a cell has.

"SDM": the noise mask, and no prediction. "MTP": prediction, and alignment of whole captions. "both" is the paper's.
Each finished cell is kept in --output_dir; started again, the script continues with the others and writes the table.
"""

import os
import sys

import numpy as np
from cell_masks import CELLS
from masking_cells import kept_cell, train_cell
from starting_point import add_model, beginning
from study_report import RESULTS, error_bars, interval, pyplot, refuse_unfinished, save_study, table
from warm_decoder import warm_decoder

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference


def summarize(cells: dict, noise_rate: float) -> dict:
    """Means over seeds, and differences from no masking over the seeds that both have; persons are resampled."""
    rows = {}
    for cell in CELLS:
        runs = {seed: run for (name, noise, seed), run in cells.items() if (name, noise) == (cell, noise_rate)}
        plain = {seed: run for (name, noise, seed), run in cells.items() if (name, noise) == ("none", noise_rate)}
        if not runs:
            continue
        rows[cell] = {"seeds": sorted(runs)}
        for metric in ("R@1", "mAP"):
            values = np.mean([run["values"][metric] for run in runs.values()], axis=0)
            groups = next(iter(runs.values()))["persons"]
            rows[cell][metric] = vars(bootstrap_interval(values, groups=groups))
            rows[cell][metric]["by_seed"] = {seed: float(np.mean(run["values"][metric])) for seed, run in runs.items()}
            shared = sorted(runs.keys() & plain.keys())
            if cell != "none" and shared:
                sides = [np.mean([side[seed]["values"][metric] for seed in shared], axis=0) for side in (runs, plain)]
                rows[cell][metric]["gain"] = vars(paired_difference(*sides, groups=groups))
    return rows


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axes = pyplot.subplots(1, len(results), figsize=(6 * len(results), 4), layout="constrained", squeeze=False)
    for axis, (noise_rate, rows) in zip(axes[0], results.items(), strict=True):
        found = [row["R@1"] for row in rows.values()]
        axis.errorbar([one["mean"] for one in found], list(rows), xerr=error_bars(found), fmt="o", capsize=3)
        for place, one in enumerate(found):
            axis.plot(list(one["by_seed"].values()), [place] * len(one["by_seed"]), "k.")
        axis.set(xlabel="text->image R@1; small dots are seeds", title=f"{noise_rate} of words false")
        axis.invert_yaxis()
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--cells", nargs="+", choices=CELLS, default=CELLS, help="masks, and the losses they enter (default: all)"
    )
    parser.add_argument(
        "--noise_rates", nargs="+", type=float, default=[0.3, 0.5], help="shares of false words (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed (default: %(default)s)"
    )
    add_model(parser)
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the images (default: %(default)s)")
    parser.add_argument(
        "--decoder_epochs", type=float, default=0.0, help="that the decoder learns alone before (default: %(default)s)"
    )
    parser.add_argument("--num_persons", type=int, default=4000, help="drawn, two images each (default: %(default)s)")
    parser.add_argument(
        "--image_size", nargs=2, type=int, default=[64, 32], help="height and width (default: %(default)s)"
    )
    parser.add_argument(
        "--output_dir",
        default=os.path.join("runs", "masking_table"),
        help="keeps finished cells (default: %(default)s)",
    )
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    parser.add_argument("--only_finished", action="store_true", help="write the table of the cells that exist")
    args = parser.parse_args(arguments)
    setting = {name: getattr(args, name) for name in ("epochs", "num_persons", "image_size", "model_name_or_path")}
    decoders, learnt = {}, {}
    if args.decoder_epochs:
        setting["decoder_epochs"] = args.decoder_epochs
        os.makedirs(args.output_dir, exist_ok=True)
        if args.only_finished:
            refuse_unfinished(*(os.path.join(args.output_dir, f"decoder_{noise}.json") for noise in args.noise_rates))
        for noise in args.noise_rates:
            decoders[noise], learnt[noise] = warm_decoder(noise, args)
    cells = {}
    for key in ((cell, noise, seed) for seed in args.seeds for noise in args.noise_rates for cell in args.cells):
        file = os.path.join(args.output_dir, "_".join(map(str, key)).replace(" ", "_") + ".json")
        if args.only_finished and not os.path.exists(file):
            continue
        options = {"decoder": decoders.get(key[1]), "start": args.model_name_or_path}
        cells[key] = kept_cell(file, setting, lambda key=key, options=options: train_cell(*key, args, **options))
        print(key, {name: round(float(np.mean(v)), 2) for name, v in cells[key]["values"].items()}, flush=True)
    results, texts = {noise: summarize(cells, noise) for noise in args.noise_rates}, []
    for noise, rows in results.items():
        lines = []
        for cell, row in rows.items():
            line = [cell, len(row["seeds"])]
            for metric in ("R@1", "mAP"):
                one, gain = row[metric], row[metric].get("gain")
                line.append(interval(one))
                line.append(f"{interval(gain, sign='+')}, p {gain['p_value']:.3f}" if gain else "-")
            lines.append(line)
        head = ["masking and losses", "seeds", "R@1", "gain over none", "mAP", "gain over none"]
        texts.append(f"Text to image, {noise} of the training words false:\n\n" + table(head, lines))
        if noise in learnt:
            by_epoch = ", ".join(f"{loss:.2f}" for loss in learnt[noise])
            texts.append(f"Loss of the decoder before the cells, in nats a word, epoch after epoch: {by_epoch}.")
    content = {"arguments": vars(args), "decoder": learnt, "results": results}
    name, title = "masking_table", "Which masking helps retrieval?"
    if args.decoder_epochs:
        name, title = "masking_table_warm", "Which masking helps retrieval, where the decoder has learnt before?"
    ending, start = beginning(args)
    save_study(name + ending, title + start, content, "\n\n".join(texts), draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
