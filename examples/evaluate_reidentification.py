r"""Measure how well images of a person find images of the same person by other cameras: a check of the image tower.

    python examples/evaluate_reidentification.py --model runs/webperson --benchmark market-1501 msmt17 --data_root data
    python examples/evaluate_reidentification.py --model runs/webperson openai/clip-vit-base-patch16 \
        --benchmark market-1501 --data_root data/Market-1501-v15.09.15 --bf16 True

Captions and training play no part. Images of the query's person by the query's own camera are left out of its ranking,
junk (person -1 of Market-1501) is not read, and distractors (person 0) count as wrong. --output_dir receives
results as JSON, Markdown and LaTeX, and model-index.yaml for the model card; of several models, paired tests too. A
model that was trained on ICFG-PEDES or RSTPReid has seen MSMT17: `python -m dataset_webperson.doctor` on both folders
says what.
"""

import sys

import torch
from accelerate import PartialState

from dataset_webperson.command_line import command
from dataset_webperson.readers.reidentification import load_reidentification, reidentification_class
from modeling_gadms.evaluation.arguments import ReidentificationArguments
from modeling_gadms.evaluation.benchmarks import INCOMPLETE
from modeling_gadms.evaluation.metrics import compare
from modeling_gadms.evaluation.reidentification import copy_fault, measure_reidentification
from modeling_gadms.evaluation.tables import write_results
from modeling_gadms.training.command_line import free_folder, parse_arguments


@command
def main(arguments: list[str] | None = None) -> None:
    (args,) = parse_arguments(ReidentificationArguments, arguments)
    state = PartialState(cpu=args.use_cpu or not torch.cuda.is_available())
    kinds = [reidentification_class(name) for name in args.benchmark]
    options = {"on_count_mismatch": args.on_count_mismatch, "on_missing_images": args.on_missing_images}
    loaded = [load_reidentification(kind, args.data_root, **options) for kind in kinds]
    output_dir, results, comparisons, text = free_folder(args.output_dir), [], [], ""
    for kind, parts in zip(kinds, loaded, strict=True):
        fault = copy_fault(kind, parts)
        shown = f"{kind.name} ({INCOMPLETE})" if fault else kind.name
        about = {"benchmark": shown, "dataset_type": kind.name.lower(), "split": "query", "incomplete": fault}
        first = None
        for model in args.model:
            result, evaluation = measure_reidentification(model, parts, args)
            results.append({**result, **about, "trained_on": None})
            if first is None:
                first = result["model"], evaluation
            else:
                names = {"model": result["model"], "other": first[0], "benchmark": shown}
                differences = compare(evaluation, first[1], seed=args.seed)
                comparisons.append({**names, "differences": differences})
        if state.is_main_process:  # after each data set: a fault of the next one costs none of these figures
            text = write_results(output_dir, results, comparisons, None, vars(args))
    if state.is_main_process:
        print(text)
        print(f"\nresults and model-index in {output_dir}")


if __name__ == "__main__":
    sys.exit(main())
