"""Models x benchmarks in one table, with intervals, both directions and cost, beside marked published figures.

    python examples/leaderboard.py --model runs/demo examples/small_clip --benchmark synthetic --image_size 64 32
    python examples/leaderboard.py --model runs/cuhk MarketaJu/siglip2-person-description-reid \
        --benchmark cuhk-pedes icfg-pedes rstpreid --data_root data --protocol direct-transfer
    python examples/leaderboard.py --model runs/cuhk runs/icfg runs/joint --matrix True \
        --benchmark cuhk-pedes icfg-pedes rstpreid --data_root data

A model is any GA-DMS, CLIP or SigLIP that plain transformers loads, a benchmark as for evaluate_retrieval.py.
Several trainings of one model are a folder that `finetune.py --seeds` wrote, or `runs/a-0,runs/a-1,runs/a-2`: their
mean stands in the table, with the standard deviation over them.
Each row says whether its weights were selected on validation, on test, not at all, or are as released.
Embeddings are kept, and reused while neither the model nor the data has changed. --output_dir receives
leaderboard.md, .tex, .json and .html, and with --matrix matrix.md, .tex and .json: what each model was trained on
against what it is tested on. Runs of finetune.py say what they were trained on, for others --trained_on does.
"""

import json
import os
import statistics
import sys
import time
from typing import Any

import torch
from studies.step_costs import count_flops

from dataset_webperson.command_line import command
from dataset_webperson.files import write_json, write_text
from modeling_gadms.evaluation.benchmarks import INCOMPLETE, display_name, load_with_fault
from modeling_gadms.evaluation.embedding_cache import cached_retrieval_set
from modeling_gadms.evaluation.encoding import caption_options
from modeling_gadms.evaluation.leaderboard import (
    RELEASED,
    latex,
    leaderboard_rows,
    markdown,
    matrix_tables,
    trained_here,
    trained_on,
    trainings_of,
    write_leaderboard_page,
)
from modeling_gadms.evaluation.leaderboard_arguments import LeaderboardArguments
from modeling_gadms.evaluation.metrics import deviation_of_runs, evaluate_embeddings, mean_of_runs
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.text_table import latex_page, markdown_page
from modeling_gadms.rows import captions_of, read_row
from modeling_gadms.training.command_line import free_folder, parse_arguments

TIMED_IMAGES, ROUNDS = 8, 3


def training_sets(args: LeaderboardArguments, number: int, first: str) -> list[str]:
    """What a model was trained on, as tables name it; `first` is its first training."""
    if not args.trained_on:
        return trained_on(first)
    return [display_name(name) for name in args.trained_on[number].split(",") if name != "none"]


def source_of(name: str, as_released: list[str]) -> str:
    """How a model came here: those of the Hub were trained by others, as those that are said to be."""
    runs = trainings_of(name)
    of_hub = not all(os.path.isdir(run) for run in runs)
    return RELEASED if of_hub or name in as_released else trained_here(runs)


@torch.no_grad()
def cost_of(model: Any, processor: Any, row: dict[str, Any]) -> dict[str, float]:
    """Millions of parameters, GFLOP of an image and of a caption, and images per second."""
    pixels = processor(images=[row["image"]], return_tensors="pt").to(model.device)
    caption = processor(text=captions_of(row)[:1], **caption_options(model.config)).to(model.device)
    batch = {name: torch.cat([tensor] * TIMED_IMAGES) for name, tensor in pixels.items()}
    seconds = []
    for _ in range(ROUNDS + 1):  # the first warms up
        start = time.perf_counter()
        model.get_image_features(**batch).pooler_output.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "image_gflop": count_flops(lambda: model.get_image_features(**pixels))[0] / 1e9,
        "caption_gflop": count_flops(lambda: model.get_text_features(**caption))[0] / 1e9,
        "images_per_second": TIMED_IMAGES / statistics.median(seconds[1:]),
    }


@command
def main(arguments: list[str] | None = None) -> None:
    (args,) = parse_arguments(LeaderboardArguments, arguments, description=__doc__)
    persons = {f"num_{split}_persons": 2 for split in ("train", "validation")} | {"num_test_persons": args.num_persons}
    synthetic = {"image_size": tuple(args.image_size), "seed": args.seed, "views_per_person": 2, **persons}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = {
        benchmark: load_with_fault(benchmark, args.data_root, synthetic_options=synthetic)
        for benchmark in args.benchmark
    }
    results = []
    for number, name in enumerate(args.model):
        folders = trainings_of(name)
        runs = [load_retriever(folder, device=device) for folder in folders]
        shown = name.split(",")[0]
        shown = os.path.basename(os.path.abspath(shown)) if os.path.isdir(shown) else shown
        first, _ = next(iter(loaded.values()))
        cost = cost_of(*runs[0], read_row(first, 0))
        for benchmark, (dataset, fault) in loaded.items():
            options = {"folder": args.cache_dir, "batch_size": args.batch_size}
            sets = [cached_retrieval_set(*run, dataset, **options)[0] for run in runs]
            found = [evaluate_embeddings(encoded, seed=args.seed) for encoded in sets]
            results.append(
                {
                    "model": shown + (f" (mean of {len(runs)} runs)" if len(runs) > 1 else ""),
                    "benchmark": display_name(benchmark) + (f" ({INCOMPLETE})" if fault else ""),
                    "source": source_of(name, args.as_released),
                    "incomplete": fault,
                    "metrics": mean_of_runs(found, seed=args.seed) if len(runs) > 1 else found[0].metrics,
                    "deviation": deviation_of_runs(found) if len(runs) > 1 else None,
                    "cost": cost,
                    "row": number,
                    "trained_on": training_sets(args, number, folders[0]),
                }
            )
    folder, rows = free_folder(args.output_dir), leaderboard_rows(results, args.protocol)
    threads = torch.get_num_threads()
    place = torch.cuda.get_device_name() if device == "cuda" else f"{threads} processor thread{'s'[: threads > 1]}"
    text = markdown(rows, place)
    write_json(os.path.join(folder, "leaderboard.json"), {"rows": rows, "arguments": vars(args)})
    write_text(os.path.join(folder, "leaderboard.md"), text + "\n")
    write_text(os.path.join(folder, "leaderboard.tex"), latex(rows))
    write_leaderboard_page(rows, place, os.path.join(folder, "leaderboard.html"))
    if args.matrix:
        tables, kept = matrix_tables(results), ("model", "trained_on", "benchmark", "incomplete", "metrics")
        text += f"\n\n{markdown_page(tables)}"
        cells = [{name: result[name] for name in kept} for result in results]
        write_json(os.path.join(folder, "matrix.json"), json.loads(json.dumps(cells, default=vars)))
        write_text(os.path.join(folder, "matrix.md"), markdown_page(tables) + "\n")
        write_text(os.path.join(folder, "matrix.tex"), latex_page(tables))
    print(f"{text}\n\nleaderboard.md, .tex, .json and .html in {folder}")


if __name__ == "__main__":
    sys.exit(main())
