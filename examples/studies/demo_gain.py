"""Study 7: what the demo gains over its base, beside the same steps without masks.

    python examples/studies/demo_gain.py                                       # an hour on one core

The recipe is examples/pretrain_demo.yaml. Each seed draws persons of its own, for training and for the test, and
orders and masks them anew: an interval over seeds covers all of this. The base has learnt square images, and is
measured on square drawings of the test persons, where it is at its best, and on the tall ones of the demo. Finished
runs are kept in --output_dir; started again, the script continues with the others and writes the table.
"""

import json
import os
import sys

from study_report import RESULTS, error_bars, interval, pyplot, save_study, table

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.evaluation.significance import STUDENT, spread_of_runs

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, EXAMPLES)
import pretrain  # noqa: E402

PLAIN, GADMS = "SDM without masks", "GA-DMS"
MASKING = {PLAIN: "none", GADMS: "gradient_attention"}
SQUARE, TALL = "base, 48x48", "base, 64x32"
GAINS = [(GADMS, SQUARE), (PLAIN, SQUARE), (GADMS, PLAIN)]
METRICS = {
    "t2i_R@1": "text->image R@1",
    "i2t_R@1": "image->text R@1",
    "t2i_mAP": "text->image mAP",
    "i2t_mAP": "image->text mAP",
}


def run(model: str, seed: int, output_dir: str) -> dict:
    """The demo with a seed, and with masks or without; what it leaves in metrics.json."""
    folder = os.path.join(output_dir, f"{MASKING[model]}_{seed}")
    file = os.path.join(folder, "metrics.json")
    if not os.path.exists(file):
        options = ["--seed", str(seed), "--masking", MASKING[model], "--save_strategy", "no", "--disable_tqdm", "True"]
        recipe = os.path.join(EXAMPLES, "pretrain_demo.yaml")
        if pretrain.main([recipe, *options, "--output_dir", folder]):
            raise RuntimeError(f"the run of {folder} failed; its message is above")
    with open(file, encoding="utf-8") as opened:
        return json.load(opened)


def recipe_of(kept: dict) -> dict:
    """What of a run's recipe decides its result; the runs of one table have it in common."""
    both = kept["arguments"] | kept["training"]
    names = "num_persons", "noise_rate", "num_train_epochs", "per_device_train_batch_size", "learning_rate"
    return {name: both[name] for name in names}


def summarize(values: list[float]) -> dict:
    """Mean, standard deviation and 95 % interval, by Student's t, of one value from each seed."""
    found = dict(vars(spread_of_runs(values)))
    return {"by_seed": found.pop("by_run"), **found}


def draw(results: dict[str, dict]) -> pyplot.Figure:
    figure, axis = pyplot.subplots(figsize=(7, 3), layout="constrained")
    found = [row["t2i_R@1"] for row in results.values()]
    axis.barh(list(results), [one["mean"] for one in found], xerr=error_bars(found), color="tab:blue", alpha=0.6)
    for place, one in enumerate(found):
        axis.plot(one["by_seed"], [place] * len(one["by_seed"]), "k.")
    axis.set(xlim=(0, None), xlabel="text->image R@1; dots are seeds")
    axis.invert_yaxis()
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    # 42 is the demo's; the base has learnt the training persons of seed 43
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 0, 1, 2, 3], help="two or more (%(default)s)")
    parser.add_argument(
        "--output_dir", default=os.path.join("runs", "demo_gain"), help="keeps finished runs (default: %(default)s)"
    )
    parser.add_argument("--results_dir", default=RESULTS, help="where the table and the figure go")
    args = parser.parse_args(arguments)
    if not 2 <= len(set(args.seeds)) == len(args.seeds) <= len(STUDENT) + 1:
        parser.error(f"--seeds: an interval takes 2 to {len(STUDENT) + 1} different seeds; got {args.seeds}")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in (SQUARE, TALL, PLAIN, GADMS)}
    recipe: dict = {}
    for seed in args.seeds:
        runs = {model: run(model, seed, args.output_dir) for model in MASKING}
        recipe = recipe or recipe_of(runs[GADMS])
        if any(recipe_of(kept) != recipe for kept in runs.values()):
            raise DataError(f"{args.output_dir}: holds runs of other recipes; choose another --output_dir")
        measured[SQUARE].append(runs[GADMS]["metrics"][SQUARE])
        measured[TALL].append(runs[GADMS]["metrics"]["before"])
        for model in MASKING:
            measured[model].append(runs[model]["metrics"]["after"])
        print(seed, {name: round(found[-1]["t2i_R@1"], 2) for name, found in measured.items()}, flush=True)
    results = {
        name: {metric: summarize([one[metric] for one in found]) for metric in METRICS}
        for name, found in measured.items()
    }
    gains = {
        f"{a} - {b}": {
            metric: summarize([x[metric] - y[metric] for x, y in zip(measured[a], measured[b], strict=True)])
            for metric in METRICS
        }
        for a, b in GAINS
    }
    head = list(METRICS.values())
    rows = [
        [name, *(f"{one[metric]['mean']:.1f} ({one[metric]['sd']:.1f})" for metric in METRICS)]
        for name, one in results.items()
    ]
    differences = [[name, *(interval(one[metric], 1, "+") for metric in METRICS)] for name, one in gains.items()]
    items = "".join(f"- {name}: {value}\n" for name, value in recipe.items())
    text = (
        f"Seeds {', '.join(map(str, args.seeds))}, {runs[GADMS]['test_images']} test images for each.\n\n{items}\n"
        f"Mean and standard deviation over seeds:\n\n"
        f"{table(['model', *head], rows)}\n\n"
        f"Paired differences, with 95 % intervals over seeds:\n\n{table(['difference', *head], differences)}"
    )
    content = {"arguments": vars(args), "recipe": recipe, "results": results, "gains": gains}
    save_study("demo_gain", "What does the demo gain?", content, text, draw(results), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
