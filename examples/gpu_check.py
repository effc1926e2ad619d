"""Check and measure a GPU: numbers beside the CPU's, steps, the score, decoding, the loader, encoding, and ranking.

    python examples/gpu_check.py --output_dir runs/gpu_check        # on a GPU, in 8 minutes; else it says `skipped`

It needs torch, transformers, datasets, accelerate and Pillow, the repository on PYTHONPATH, and no network; with
torchcodec it decodes on the card too. Weights are random and images are drawn. After each part, gpu_check.json and
gpu_check.md hold what is known so far. The exit code is 1 if a number is out of its bounds, a training step waits for
the device, the time is over before all is measured, or a part fails, which does not stop the others.
"""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import transformers
from device_checks.decoding import decoding_rates
from device_checks.loading import drawn_rows, loader_rates
from device_checks.numbers import check_numbers
from device_checks.retrieval import encoding_rates, ranking_seconds
from device_checks.steps import NO_WAIT, card_name, peak_tflops, step_rates
from device_checks.walks import score_seconds

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_json, write_text
from modeling_gadms import GADMSConfig

ICFG = 19_848  # captions, and images, of ICFG-PEDES's test set
MINUTES = 8.0
Rows = list[dict[str, Any]]


def parts(
    device: torch.device,
    config: GADMSConfig,
    batch_size: int,
    steps: int,
    length: int,
    workers: int,
    gallery: int = ICFG,
    persons: int = 1024,
    pictures: int = 256,
    compiled: bool = True,
) -> dict[str, Callable[[], Rows]]:
    """Everything that is checked and measured, as functions without arguments."""
    dimension = config.projection_dim

    def loader() -> Rows:
        with tempfile.TemporaryDirectory() as folder:
            rows = drawn_rows(persons)
            return loader_rates(device, config, rows, batch_size, steps, workers, folder, compiled)

    return {
        "Numbers beside the CPU's": lambda: check_numbers(device, config, [length, 3, length // 2, 7]),
        "Training steps": lambda: step_rates(device, config, batch_size, steps, length),
        "Score": lambda: score_seconds(device, config, batch_size, length, compiled=compiled),
        "Ranking": lambda: ranking_seconds(device, gallery, dimension),
        "Decoding": lambda: decoding_rates(device, tuple(config.vision_config.image_size), pictures),
        "Loader": loader,
        "Encoding": lambda: encoding_rates(
            device, config, drawn_rows(persons), 4 * batch_size, max(steps // 10, 1), workers
        ),
    }


def run(named: dict[str, Callable[[], Rows]], head: dict[str, Any], output_dir: str, minutes: float = MINUTES) -> int:
    """Run the parts one after the other, write what is known after each, and count those that failed.

    A part that would begin when the minutes are over is left out, and counts as failed, as does one that ends later.
    """
    found: dict[str, Any] = {**head, "parts": {}, "seconds": {}}
    failed, end = 0, time.perf_counter() + 60 * minutes
    for title, part in named.items():
        start = time.perf_counter()
        try:
            rows = part() if start < end else [{"left out": f"{minutes:g} minutes were over: try fewer --steps"}]
            failed += time.perf_counter() > end or not all(map(as_wanted, rows))
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            rows, failed = [{"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}], failed + 1
        found["parts"][title] = rows
        found["seconds"][title] = round(time.perf_counter() - start, 1)
        write_json(os.path.join(output_dir, "gpu_check.json"), found)
        write_text(os.path.join(output_dir, "gpu_check.md"), page(found))
        print(f"\n{title}, {found['seconds'][title]} s\n\n{table(rows)}", flush=True)
        if start < end < time.perf_counter():
            print(
                f"\n{title} ended after {minutes:g} minutes, which counts as a failure: try fewer --steps", flush=True
            )
    return failed


def as_wanted(row: dict[str, Any]) -> bool:
    """Whether nothing in a row of a part speaks against the device or the code."""
    waits = row.get("waits for the device") or NO_WAIT[0]
    return row.get("within", True) and row.get("as on the CPU", True) and waits in NO_WAIT


def page(found: dict[str, Any]) -> str:
    """Markdown: the machine, then a table for each part."""
    lines = [f"# {found['card']}", "", ", ".join(f"{name} {found[name]}" for name in found if name not in NOT_HEAD)]
    for title, rows in found["parts"].items():
        lines += ["", f"## {title}", "", table(rows), "", f"{found['seconds'][title]} s"]
    return "\n".join(lines) + "\n"


NOT_HEAD = ("card", "parts", "seconds")


def table(rows: Rows) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[str(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells))


@command
def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output_dir", default="runs/gpu_check", help="for the results (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each kind (default: %(default)s)")
    parser.add_argument("--caption_length", type=int, default=40, help="tokens per caption (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--num_workers", type=int, default=max(cores - 1, 1), help="of the loader (%(default)s here)")
    args = parser.parse_args(arguments)
    config = GADMSConfig()
    longest = config.text_config.max_position_embeddings
    # the loader's rate begins after its first step
    parser.refuse_outside(args, batch_size=(2, None), steps=(2, None), caption_length=(8, longest))
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    device = torch.device("cuda")
    card = card_name(device)
    head = {"card": card, "peak TFLOP/s": peak_tflops(card) or "unknown", "torch": torch.__version__}
    head |= {"transformers": transformers.__version__, "CPU cores": cores, "batch size": args.batch_size}
    named = parts(device, config, args.batch_size, args.steps, args.caption_length, args.num_workers)
    return int(run(named, head, args.output_dir) > 0)


if __name__ == "__main__":
    sys.exit(main())
