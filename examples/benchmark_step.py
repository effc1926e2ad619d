"""Time a GA-DMS training step and its parts beside a plain CLIP step with the same towers, in one run.

    python examples/benchmark_step.py                                  # ViT-B/16 at 384x128, captions of 40 tokens
    python examples/benchmark_step.py --batch_size 4 --caption_length 77 --repeats 5

Each is timed forward and backward, in turn, `--repeats` times, and its median is printed. Weights are random, which
does not change the time.
"""

import statistics
import sys
import time

import torch
from studies.training_steps import gadms_step, make_batch, parts_of_step, plain_step

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSConfig, GADMSForPreTraining


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs per step (default: %(default)s)")
    parser.add_argument("--caption_length", type=int, default=40, help="tokens per caption (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    args = parser.parse_args(arguments)
    for name, least, most in (("batch_size", 2, None), ("caption_length", 3, 77), ("repeats", 1, None)):
        value = getattr(args, name)
        if value < least or (most is not None and value > most):
            parser.error(f"--{name} must be at least {least}{f' and at most {most}' if most else ''}; got {value}")

    model = GADMSForPreTraining(GADMSConfig()).train()
    batch = make_batch(model.config, [args.caption_length] * args.batch_size)
    functions = {
        "plain CLIP step": lambda: plain_step(model, batch),
        "GA-DMS step": lambda: gadms_step(model, batch),
        **{f"  {name}": function for name, function in parts_of_step(model, batch).items()},
    }
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(args.repeats + 1):
        for name, function in functions.items():
            model.zero_grad()
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)

    plain = statistics.median(times["plain CLIP step"])
    threads = torch.get_num_threads()
    print(f"ViT-B/16, 384x128, batch {args.batch_size}, {args.caption_length} tokens, {threads} threads")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:30} {median:7.2f} s  {median / plain:5.2f} x the plain CLIP step")


if __name__ == "__main__":
    sys.exit(main())
