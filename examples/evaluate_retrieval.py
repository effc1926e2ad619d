"""Measure text-to-person retrieval: a table with confidence intervals beside published figures, and report pages.

    python examples/evaluate_retrieval.py --model runs/demo --benchmark synthetic --image_size 64 32 --seed 42
    python examples/evaluate_retrieval.py --model runs/webperson --benchmark cuhk-pedes icfg-pedes rstpreid \
        --data_root data --protocol direct-transfer --compare openai/clip-vit-base-patch16 --robustness True
    torchrun --nproc_per_node 2 examples/evaluate_retrieval.py --model runs/webperson --benchmark my/folder --bf16 True

A benchmark is `cuhk-pedes`, `icfg-pedes`, `rstpreid`, `ufine6926` or another of examples/data.md below --data_root,
`synthetic`, or a folder of images with `captions` and `person_id`; a model is any GA-DMS, CLIP or SigLIP. --output_dir
receives the results as JSON, Markdown and LaTeX, model-index.yaml for the model card, and a report page per result.
Embeddings are kept, and reused while neither the model nor the data has changed.
"""

import os
import sys

import datasets
import torch
from accelerate import PartialState

from dataset_webperson.command_line import command
from modeling_gadms.evaluation.arguments import EvaluationArguments
from modeling_gadms.evaluation.benchmarks import INCOMPLETE, display_name, load_with_fault
from modeling_gadms.evaluation.caption_bank import BANK_SCORINGS, PHRASINGS_NNN, CaptionBank, caption_bank
from modeling_gadms.evaluation.metrics import compare
from modeling_gadms.evaluation.one_model import measure
from modeling_gadms.evaluation.published_results import column_of
from modeling_gadms.evaluation.report_page import write_retrieval_page
from modeling_gadms.evaluation.tables import write_results
from modeling_gadms.rows import all_captions
from modeling_gadms.training.command_line import free_folder, parse_arguments


def load(
    benchmark: str, annotations: str | None, image_root: str | None, args: EvaluationArguments, split: str
) -> tuple[datasets.Dataset, str | None]:
    """The rows of one benchmark, and why they are not all of it; brought into a cache by one process for all."""
    persons = {f"num_{name}_persons": 2 for name in ("train", "validation", "test")}
    persons[f"num_{split}_persons"] = args.num_persons
    options = {"image_size": tuple(args.image_size), "seed": args.seed, "views_per_person": args.views_per_person}
    options["twins"] = args.twins
    where = {"split": split, "annotations": annotations, "image_root": image_root}
    where |= {"on_count_mismatch": args.on_count_mismatch, "on_missing_images": args.on_missing_images}
    with PartialState().main_process_first():
        return load_with_fault(benchmark, args.data_root, synthetic_options={**options, **persons}, **where)


def load_bank(
    benchmark: str, measured: datasets.Dataset, where: list[str | None], args: EvaluationArguments
) -> CaptionBank | None:
    """The captions of train that `measured` has not, where a scoring asks for them."""
    if not set(args.rescore) & {*BANK_SCORINGS, PHRASINGS_NNN}:
        return None
    training, _ = load(benchmark, *where, args, "train")
    bank = caption_bank(all_captions(training)[0], all_captions(measured)[0])
    if PartialState().is_main_process:
        print(f"{display_name(benchmark)}: {bank}", flush=True)
    return bank


@command
def main(arguments: list[str] | None = None) -> None:
    (args,) = parse_arguments(EvaluationArguments, arguments, renamed={"--root": "--data_root"})
    state = PartialState(cpu=args.use_cpu or not torch.cuda.is_available())
    options = map(args.of_each_benchmark, ("model", "compare", "trained_on", "annotations", "image_root"))
    jobs = list(zip(args.benchmark, *options, strict=True))
    for benchmark, name, _, trained_on, *_ in jobs:  # what would not fit is refused before the work
        column_of(args.protocol, name, display_name(benchmark), trained_on and display_name(trained_on))
    loaded = [load(benchmark, *where, args, args.split) for benchmark, _, _, _, *where in jobs]
    measured = zip(jobs, [rows for rows, _ in loaded], strict=True)
    banks = [load_bank(benchmark, rows, where, args) for (benchmark, _, _, _, *where), rows in measured]
    output_dir, results, comparisons, text = free_folder(args.output_dir), [], [], ""
    for number, ((benchmark, name, other, trained_on, *_), (dataset, fault), bank) in enumerate(
        zip(jobs, loaded, banks, strict=True), 1
    ):
        plain, known = [], display_name(benchmark)
        shown_as = f"{known} ({INCOMPLETE})" if fault else known
        about = {"benchmark": shown_as, "dataset_type": os.path.basename(os.path.abspath(benchmark))}
        about |= {"split": args.split, "trained_on": trained_on and display_name(trained_on), "incomplete": fault}
        for model in [name] if other is None else [name, other]:
            (first, *anew), (cosine, *evaluations), encoded = measure(model, dataset, bank, args)
            results += [{**result, **about} for result in (first, *anew)]
            shown = first["model"]
            for result, evaluation in zip(anew, evaluations, strict=True):
                differences = compare(evaluation, cosine, seed=args.seed)
                names = {"model": f"{shown}, {result['scoring']}", "other": shown, "benchmark": shown_as}
                cost = 1000 * result["rescoring_seconds"] / result["captions"]
                comparisons.append({**names, "ms_per_query": cost, "differences": differences})
            if state.is_main_process:
                for why_not in first.get("not_rescored", []):
                    print(f"{known}: {why_not}")
                page = os.path.join(output_dir, f"{number}-{known}-{shown.replace('/', '--')}.html")
                about_page = {"title": f"{shown} on {shown_as}", "note": fault and f"Not the benchmark: {fault}"}
                write_retrieval_page(page, dataset, encoded, cosine, **about_page)
            plain.append((shown, cosine))
        if other is not None:
            (first, of_first), (second, of_second) = plain
            differences = compare(of_first, of_second, seed=args.seed)
            names = {"model": first, "other": second, "benchmark": shown_as}
            comparisons.append({**names, "differences": differences})
        if state.is_main_process:  # after each benchmark: a fault of the next one costs none of these figures
            text = write_results(output_dir, results, comparisons, args.protocol, vars(args))
    if state.is_main_process:
        print(text)
        print(f"\nresults, model-index and report pages in {output_dir}")


if __name__ == "__main__":
    sys.exit(main())
