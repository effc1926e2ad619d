"""Where a GA-DMS training step spends its time, beside a plain CLIP step with the same towers, in one run.

    python examples/benchmark_step.py                                  # ViT-B/16 at 384x128, captions of 40 tokens
    python examples/benchmark_step.py --batch_size 4 --caption_length 77 --repeats 5

Everything is timed forward and backward, in turn, `--repeats` times; medians are printed. Weights are random: they do
not change the time.
"""

import argparse
import statistics
import time

import torch
from studies.training_steps import gadms_step, make_batch, parts_of_step, plain_step

from modeling_gadms import GADMSConfig, GADMSForPreTraining


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--caption_length", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = GADMSForPreTraining(GADMSConfig()).train()
    batch = make_batch(model.config, [args.caption_length] * args.batch_size)
    functions = {
        "plain CLIP step": lambda: plain_step(model, batch),
        "GA-DMS step": lambda: gadms_step(model, batch),
        **{f"  {name}": function for name, function in parts_of_step(model, batch).items()},
    }
    times = {name: [] for name in functions}
    for repeat in range(args.repeats + 1):
        for name, function in functions.items():
            model.zero_grad()
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    plain = statistics.median(times["plain CLIP step"])
    print(
        f"ViT-B/16, 384x128, batch {args.batch_size}, {args.caption_length} tokens, {torch.get_num_threads()} threads"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:30} {median:7.2f} s  {median / plain:5.2f} x the plain CLIP step")


if __name__ == "__main__":
    main()
