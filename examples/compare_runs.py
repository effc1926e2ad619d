"""Compare runs of pretrain.py or finetune.py: settings that differ, curves, final figures, and paired tests.

    python examples/compare_runs.py runs/plain runs/lora
    python examples/compare_runs.py runs/sweep-plain runs/sweep-lora runs/sweep-masks --output_dir runs/compared

Each run but the first is compared with the first, over the same test queries. A folder that `finetune.py --seeds` has
written is compared with another such folder, paired by seed and query. --output_dir receives comparison.md, .tex and
.json, and, where matplotlib is installed, curves.png.
"""

import importlib.util
import json
import os
import sys

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import replacing, write_json, write_text
from modeling_gadms.evaluation.run_comparison import CURVES, Candidate, compare_candidates, curves_of, read_candidates
from modeling_gadms.evaluation.text_table import latex_page, markdown_page
from modeling_gadms.training.command_line import free_folder


def save_curves(candidates: list[Candidate], path: str) -> bool:
    """A panel for each curve, a colour for each candidate; `False` where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [(number, one.name, curves_of(run)) for number, one in enumerate(candidates) for run in one.runs]
    shown = [key for key in CURVES if any(key in curves for _, _, curves in found)]
    if not shown:
        return False
    figure, axes = pyplot.subplots(
        len(shown), sharex=True, squeeze=False, figsize=(7, 2.4 * len(shown)), layout="constrained"
    )
    for axis, key in zip(axes[:, 0], shown, strict=True):
        named = set()
        for number, name, curves in found:
            if points := curves.get(key):
                label = None if name in named else name  # one entry for all seeds of a sweep
                axis.plot(*zip(*points, strict=True), color=f"C{number}", label=label, marker=".", linewidth=1)
                named.add(name)
        axis.set_title(CURVES[key], fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[-1, 0].set_xlabel("step")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
    return True


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders; the others are compared with the first")
    parser.add_argument("--output_dir", default=os.path.join("runs", "comparison"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="decides intervals and tests (%(default)s)")
    args = parser.parse_args(arguments)
    if not 2 <= len({os.path.realpath(run) for run in args.runs}) == len(args.runs):
        parser.error(f"give two or more different folders; got {', '.join(args.runs)}")
    candidates = read_candidates(args.runs)
    tables, content = compare_candidates(candidates, args.seed)
    folder = free_folder(args.output_dir)
    text = markdown_page(tables)
    write_json(os.path.join(folder, "comparison.json"), json.loads(json.dumps(content, default=vars)))
    write_text(os.path.join(folder, "comparison.md"), f"# {' / '.join(one.name for one in candidates)}\n\n{text}\n")
    write_text(os.path.join(folder, "comparison.tex"), latex_page(tables))
    print(f"{text}\n\ncomparison.md, .tex and .json in {folder}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no curves.png: matplotlib is not installed; pip install '.[examples]'")
    elif save_curves(candidates, os.path.join(folder, "curves.png")):
        print(f"curves.png in {folder}")


if __name__ == "__main__":
    sys.exit(main())
