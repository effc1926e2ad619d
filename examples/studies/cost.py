"""Study 4: what does a training step of GA-DMS cost, beside a plain CLIP step and the released code's schedule?

    python examples/studies/cost.py                          # ViT-B/16 at 384x128, batches of 4, 5 minutes on 2 cores

Every step and part runs forward and backward, in turn, `--repeats` times after a round that counts operations and
memory; the steps that the aim is about run three times as often, in between. Weights and images are random, which
changes neither. Captions have 40 tokens, or 77, or lengths as in the synthetic WebPerson, padded to the longest.
"""

import sys
from statistics import median

import numpy as np
import torch
from cost_steps import (
    FULL,
    OURS,
    PARTS,
    PLAIN,
    RELEASED,
    SHORT,
    caption_lengths,
    order_of_steps,
    span,
    steps_to_measure,
)
from step_costs import measure
from study_report import RESULTS, pyplot, save_study, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.evaluation.significance import bootstrap_interval

AIM = 1.1
GIVEN = {RELEASED: (175.9, 1.6), PLAIN: (116.8, 1.0)}  # GFLOP a sample, time over the plain step's
NOTES = f"""\
Operations are those of matrix products, convolutions and attention, two for each product and its sum; causal attention
counts as if it were full, and the backward pass of fused attention with what it computes again. Torch's counter passes
over fused attention on a CPU, and here its formula for GPUs counts it; without it, the operations come close to the
given ones. Memory is the most bytes of tensors alive at once among those that the step allocated, as torch's CPU
allocator reports them, over the size of the batch: without weights and their gradients, but with what a step needs
once, such as the vocabulary's gradient on its way. Times are medians [least, greatest], all of one process; a ratio is
to the latest plain CLIP step padded to {FULL}. Rows marked *given* are to compare with, and not of this run.

The released schedule is written here from its description and runs on this project's modules: captions padded to
{FULL}; scores from the last text layers with a single head, and a backward pass for each of them; one view after the
other; the vocabulary layer on every position. As in the step, the image tower runs once, and the attention of the
towers and the decoder is fused."""


def spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table_of(found: dict[str, dict]) -> str:
    rows = [
        [name, *(f"{one[cost]:.1f}" for cost in ("gflop", "gflop_without_fused_attention"))]
        + [spread(one["seconds"], 3), spread(one["ratio"]), f"{one['megabytes']:.0f}"]
        for name, one in found.items()
    ]
    rows += [[f"*given:* {name}", "-", gflop, "-", ratio, "-"] for name, (gflop, ratio) in GIVEN.items()]
    head = ["forward and backward", "GFLOP a sample", "without fused attention", "s a sample", "time over plain"]
    return table([*head, "MB a sample"], rows)


def verdict(ratios: list[float]) -> str:
    """The mean of the ratios with its 95 % interval, and whether all of that lies on one side of the aim."""
    one = bootstrap_interval(ratios)
    met = "met" if one.high < AIM else "not met" if one.low >= AIM else "not decided by these rounds"
    return f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}], {met}"


def findings(found: dict[str, dict], lengths: list[int]) -> list[str]:
    """What the table says about the aim, the released schedule, the parts and the variants."""
    seconds = {name: median(one["seconds"]) for name, one in found.items()}
    parts = [f"{part}, {SHORT} tokens" for part in PARTS]
    both, apart = (f"text tower, {how}, {SHORT} tokens" for how in ("both views", "view after view"))
    mixed, unpadded = f"text side, {span(lengths)}", "text side, as many tokens without padding"
    packing = 100 * (seconds[mixed] - seconds[unpadded]) / seconds[f"GA-DMS, {span(lengths)}"]

    def times(name: str) -> str:
        memory = found[name]["megabytes"] / found[OURS]["megabytes"]
        return f"{seconds[name] / seconds[OURS]:.2f} times the time and {memory:.2f} times the memory"

    operations = {name: one["gflop"] for name, one in found.items()}
    aims = "; ".join(
        f"{name}: {verdict(found[name]['ratio'])}; {operations[name] / operations[PLAIN]:.2f} times the operations"
        for name in (OURS, f"GA-DMS, {span(lengths)}")
    )
    return [
        f"Aim: a GA-DMS step below {AIM} times the plain step padded to {FULL}, by the mean of ratios and its 95 % "
        f"interval. {aims}.",
        "The released schedule, beside the GA-DMS step on the same captions: "
        f"{operations[RELEASED] / operations[OURS]:.2f} times the operations, {times(RELEASED)}.",
        f"The parts at {SHORT} tokens add up to {sum(operations[part] for part in parts):.1f} GFLOP and "
        f"{sum(seconds[part] for part in parts):.3f} s, the step to {operations[OURS]:.1f} and {seconds[OURS]:.3f}.",
        "The views through the text tower one after the other, which the step does not do: "
        f"{seconds[apart] / seconds[both]:.2f} times the time of both at once, for the same operations.",
        f"Activation checkpointing: {times(f'{OURS}, activation checkpointing')}, the same gradients.",
        f"bfloat16 autocast: {times(f'{OURS}, bfloat16 autocast')}; not exact (see `exactness.md`).",
        f"Packed captions, without padding, could save no more than {packing:.1f} % of the step on captions of "
        f"{span(lengths)} ({', '.join(map(str, lengths))}). They are left out: masks of blocks would have to take the "
        "place of causal attention in the text tower, in the scores and in the decoder.",
        "torch.compile is left out: a step of two pairs compiled in a minute and then ran in 0.94 to 1.02 of its time "
        "on one thread, where nearly all is matrix products.",
    ]


def draw(found: dict[str, dict]) -> pyplot.Figure:
    names = [name for name in found if name.startswith(("plain", "GA-DMS", "released"))]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for axis, cost in zip(axes, ("gflop_without_fused_attention", "ratio", "megabytes"), strict=True):
        values = [np.atleast_1d(found[name][cost]) for name in names]
        middle = np.array([median(one) for one in values])
        ends = np.abs([[one.min() for one in values] - middle, [one.max() for one in values] - middle])
        axis.barh(names, middle, xerr=ends if cost == "ratio" else None, color="tab:blue", alpha=0.6)
    for place in (0, 1):
        axes[place].plot([given[place] for given in GIVEN.values()], list(GIVEN), "kx", label="given")
    axes[1].axvline(AIM, color="tab:red", linestyle=":", label=f"aim of the GA-DMS step: {AIM}")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    titles = ("GFLOP a sample, without fused attention", f"time over {PLAIN}", "peak MB a sample")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel=title)
    axes[0].invert_yaxis()
    return figure


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=4, help="pairs per step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all steps (default: %(default)s)")
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model, lengths = GADMSForPreTraining(GADMSConfig()).train(), caption_lengths(args.batch_size)
    steps = steps_to_measure(model, lengths)
    found = measure(model, steps, order_of_steps(steps, lengths, args.repeats), args.batch_size, PLAIN)
    setting = f"ViT-B/16, 384x128, batches of {args.batch_size}, {args.repeats} rounds, "
    setting += f"{torch.get_num_threads()} threads."
    lines = "\n".join(f"- {finding}" for finding in findings(found, lengths))
    content = {"arguments": vars(args), "threads": torch.get_num_threads(), "lengths": lengths, "results": found}
    content["given"] = {name: dict(zip(("gflop", "ratio"), given, strict=True)) for name, given in GIVEN.items()}
    text = "\n\n".join([setting, table_of(found), lines, NOTES])
    save_study("cost", "What does a training step cost?", content, text, draw(found), args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
