"""Measure text-to-person retrieval: a table with confidence intervals beside published figures, and report pages.

    python examples/evaluate_retrieval.py --model runs/demo --benchmark synthetic --image_size 64 32 --seed 42
    python examples/evaluate_retrieval.py --model runs/webperson --benchmark cuhk-pedes icfg-pedes rstpreid \
        --data_root data --protocol direct-transfer --compare openai/clip-vit-base-patch16 --robustness True
    torchrun --nproc_per_node 2 examples/evaluate_retrieval.py --model runs/webperson --benchmark my/folder --bf16 True

A benchmark is `cuhk-pedes`, `icfg-pedes`, `rstpreid` or `ufine6926` below --data_root, `synthetic`, or a folder of
images with `captions` and `person_id`; a model is any GA-DMS, CLIP or SigLIP. --output_dir receives results.json,
results.md, model-index.yaml for the model card, and a report page per result. Embeddings are kept, and reused while
neither the model nor the data has changed.
"""

import os
import sys
import time

import datasets
import torch
from accelerate import PartialState

from dataset_webperson.command_line import command
from modeling_gadms.evaluation.arguments import EvaluationArguments
from modeling_gadms.evaluation.benchmarks import INCOMPLETE, display_name, load_with_fault
from modeling_gadms.evaluation.embedding_cache import cached_retrieval_set
from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import Evaluation, compare, evaluate_embeddings, evaluate_ranks
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.published_results import column_of
from modeling_gadms.evaluation.report_page import write_retrieval_page
from modeling_gadms.evaluation.rescoring import SCORINGS, TOKEN_SELECTION, refusal, rescore
from modeling_gadms.evaluation.robustness import measure_robustness
from modeling_gadms.evaluation.tables import write_results
from modeling_gadms.released.token_selection import WithTokenSelection, load_selection
from modeling_gadms.training.command_line import free_folder, parse_arguments


def load(
    benchmark: str, annotations: str | None, image_root: str | None, args: EvaluationArguments
) -> tuple[datasets.Dataset, str | None]:
    """The rows of one benchmark, and why they are not all of it; brought into a cache by one process for all."""
    persons = {f"num_{split}_persons": 2 for split in ("train", "validation", "test")}
    persons[f"num_{args.split}_persons"] = args.num_persons
    options = {"image_size": tuple(args.image_size), "seed": args.seed, "views_per_person": args.views_per_person}
    where = {"split": args.split, "annotations": annotations, "image_root": image_root}
    where |= {"on_count_mismatch": args.on_count_mismatch, "on_missing_images": args.on_missing_images}
    with PartialState().main_process_first():
        return load_with_fault(benchmark, args.data_root, synthetic_options={**options, **persons}, **where)


def evaluate(
    name: str, benchmark: str, dataset: datasets.Dataset, args: EvaluationArguments
) -> tuple[list[dict], dict[str, Evaluation], RetrievalSet]:
    """Encode and rank one data set by one model; each process encodes its share. The first result is the plain one."""
    state = PartialState()
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "progress": state.is_main_process}
    model, processor = load_retriever(name, bf16=args.bf16, device=state.device)
    data = (processor, dataset, args.cache_dir)
    start = time.time()
    encoded, note = cached_retrieval_set(model, *data, limit=args.cache_limit, **options)
    result = {
        "model": os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "images": len(encoded.image_embeds),
        "captions": len(encoded.text_embeds),
        "processes": state.num_processes,
        "encoding_seconds": round(time.time() - start, 2),
        **note,
    }
    evaluations = {"cosine": evaluate_embeddings(encoded, seed=args.seed)}
    results = [{**result, "scoring": "cosine", "metrics": evaluations["cosine"].metrics}]
    branch = load_selection(name) if TOKEN_SELECTION in args.rescore else None
    for scoring in args.rescore:
        # another benchmark, or another model, may well have what is lacking here
        if why_not := refusal(scoring, encoded, result["model"], branch):
            results[0].setdefault("not_rescored", []).append(why_not)
            if state.is_main_process:
                print(f"{display_name(benchmark)}: {why_not}")
            continue
        start = time.time()
        if branch is not None and scoring == TOKEN_SELECTION:
            both = WithTokenSelection(model, branch)
            fused, _ = cached_retrieval_set(both, *data, limit=args.cache_limit, **options)
            evaluations[scoring] = evaluate_embeddings(fused, seed=args.seed)
        else:
            ranks = {"t2i": rescore(scoring, encoded, state.is_main_process)}
            evaluations[scoring] = evaluate_ranks(ranks, evaluations["cosine"].person_ids, seed=args.seed)
        seconds = {"rescoring_seconds": round(time.time() - start, 2)}
        results.append({**result, **seconds, "scoring": SCORINGS[scoring], "metrics": evaluations[scoring].metrics})
    if args.robustness:
        results[0]["robustness"] = measure_robustness(model, processor, dataset, encoded, seed=args.seed, **options)
    return results, evaluations, encoded


@command
def main(arguments: list[str] | None = None) -> None:
    (args,) = parse_arguments(EvaluationArguments, arguments, renamed={"--root": "--data_root"})
    state = PartialState(cpu=args.use_cpu or not torch.cuda.is_available())
    options = map(args.of_each_benchmark, ("model", "compare", "trained_on", "annotations", "image_root"))
    jobs = list(zip(args.benchmark, *options, strict=True))
    for benchmark, name, _, trained_on, *_ in jobs:  # what would not fit is refused before the work
        column_of(args.protocol, name, display_name(benchmark), trained_on and display_name(trained_on))
    loaded = [load(benchmark, *where, args) for benchmark, _, _, _, *where in jobs]
    output_dir, results, comparisons, text = free_folder(args.output_dir), [], [], ""
    for number, ((benchmark, name, other, trained_on, *_), (dataset, fault)) in enumerate(
        zip(jobs, loaded, strict=True), 1
    ):
        plain, known = [], display_name(benchmark)
        shown_as = f"{known} ({INCOMPLETE})" if fault else known
        about = {"benchmark": shown_as, "dataset_type": os.path.basename(os.path.abspath(benchmark))}
        about |= {"split": args.split, "trained_on": trained_on and display_name(trained_on), "incomplete": fault}
        for model in [name] if other is None else [name, other]:
            found, evaluations, encoded = evaluate(model, benchmark, dataset, args)
            results += [{**result, **about} for result in found]
            shown = found[0]["model"]
            for scoring in list(evaluations)[1:]:
                differences = compare(evaluations[scoring], evaluations["cosine"], seed=args.seed)
                names = {"model": f"{shown}, {SCORINGS[scoring]}", "other": shown, "benchmark": shown_as}
                comparisons.append({**names, "differences": differences})
            if state.is_main_process:
                page = os.path.join(output_dir, f"{number}-{known}-{shown.replace('/', '--')}.html")
                about_page = {"title": f"{shown} on {shown_as}", "note": fault and f"Not the benchmark: {fault}"}
                write_retrieval_page(page, dataset, encoded, evaluations["cosine"], **about_page)
            plain.append((shown, evaluations["cosine"]))
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
