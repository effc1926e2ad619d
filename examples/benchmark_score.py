"""Time the ways to score captions beside a text pass: EOS walks alone (eager, compiled), or all tokens do.

    python examples/benchmark_score.py                       # ViT-B/16's text tower, 16 captions of 40 tokens
    python examples/benchmark_score.py --batch_size 64 --caption_length 77 --repeats 5

On a GPU, where one is, also with the walk recorded as one CUDA graph. All ways but the last layer alone give the same
scores, which is checked: the exit code is 1 if they do not. Weights are random, which does not change the time.
Operations are those that torch is asked for, views aside; on a GPU each is a kernel to start.
"""

import sys

import torch
from device_checks.walks import score_seconds
from gpu_check import as_wanted, table

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSConfig


@command
def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=16, help="captions at a time (default: %(default)s)")
    parser.add_argument("--caption_length", type=int, default=40, help="tokens per caption (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (default: %(default)s)")
    args = parser.parse_args(arguments)
    config = GADMSConfig()
    longest = config.text_config.max_position_embeddings
    # the one word of three tokens scores 0 in every way
    parser.refuse_outside(args, batch_size=(1, None), caption_length=(4, longest), repeats=(1, None))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads, {args.batch_size} captions of {args.caption_length} tokens\n")
    rows = score_seconds(device, config, args.batch_size, args.caption_length, args.repeats)
    print(table(rows))
    return int(not all(map(as_wanted, rows)))


if __name__ == "__main__":
    sys.exit(main())
