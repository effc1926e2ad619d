"""Measure text-to-person retrieval: a table with confidence intervals beside published figures, and report pages.

    python examples/evaluate_retrieval.py --model runs/demo --benchmark synthetic --image_size 64 32
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
from dataclasses import dataclass, field

import datasets
import torch
from accelerate import PartialState

from dataset_webperson.command_line import command
from modeling_gadms.evaluation.benchmarks import display_name, load_evaluation_set
from modeling_gadms.evaluation.embedding_cache import DEFAULT_FOLDER, DEFAULT_LIMIT, cached_retrieval_set
from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import Evaluation, compare, evaluate_embeddings, evaluate_ranks
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.published_results import PROTOCOLS, column_of
from modeling_gadms.evaluation.report_page import write_retrieval_page
from modeling_gadms.evaluation.rescoring import RESCORINGS, rescore
from modeling_gadms.evaluation.robustness import measure_robustness
from modeling_gadms.evaluation.tables import write_results
from modeling_gadms.training.command_line import free_folder, parse_arguments


@dataclass
class EvaluationArguments:
    model: list[str] = field(
        metadata={"help": "Folder or Hub id: one for all benchmarks, or one per benchmark in order."}
    )
    benchmark: list[str] = field(metadata={"help": "Names of benchmarks, `synthetic`, or folders."})
    data_root: str | None = field(default=None, metadata={"help": "Folder that holds the benchmarks."})
    split: str = field(default="test", metadata={"help": "Split of each benchmark to measure."})
    on_count_mismatch: str = field(
        default="error",
        metadata={
            "help": "What to do if a copy's counts differ from the official ones.",
            "choices": ["error", "warn"],
        },
    )
    image_size: list[int] = field(
        default_factory=lambda: [128, 64], metadata={"help": "Synthetic: height and width in pixels."}
    )
    num_persons: int = field(default=400, metadata={"help": "Synthetic: persons of the split."})
    views_per_person: int = field(default=2, metadata={"help": "Synthetic: images per person."})
    compare: list[str] = field(
        default_factory=list, metadata={"help": "Model to compare with: one for all benchmarks, or one per benchmark."}
    )
    protocol: str | None = field(
        default=None, metadata={"help": "Table of published results to fill in.", "choices": PROTOCOLS}
    )
    trained_on: list[str] = field(
        default_factory=list, metadata={"help": "Cross-domain: benchmark that the model was fine-tuned on."}
    )
    rescore: list[str] = field(
        default_factory=list,
        metadata={"help": "Rescorings to measure in addition to the cosine.", "choices": list(RESCORINGS)},
    )
    robustness: bool = field(default=False, metadata={"help": "Also measure on damaged captions and images."})
    output_dir: str = field(
        default=os.path.join("runs", "evaluation"), metadata={"help": "Folder for results and pages."}
    )
    cache_dir: str = field(default=DEFAULT_FOLDER, metadata={"help": "Folder where embeddings are kept."})
    cache_limit: float = field(
        default=DEFAULT_LIMIT, metadata={"help": "GB they may take; the least recently used are deleted."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images or captions encoded at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that load images in the background."})
    bf16: bool = field(default=False, metadata={"help": "Encode in bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})
    seed: int = field(default=0, metadata={"help": "Decides intervals, tests, damaged inputs and synthetic persons."})

    def of_each_benchmark(self, name: str) -> list:
        """The values of an option, one per benchmark."""
        values = getattr(self, name) or [None]
        if len(values) not in (1, len(self.benchmark)):
            raise ValueError(
                f"--{name}: {len(values)} values for {len(self.benchmark)} benchmarks; give one or as many"
            )
        return values * len(self.benchmark) if len(values) == 1 else values


def load(benchmark: str, args: EvaluationArguments) -> datasets.Dataset:
    """The rows of one benchmark; drawn, or brought into a cache, by one process while the others wait."""
    persons = {f"num_{split}_persons": 2 for split in ("train", "validation", "test")}
    persons[f"num_{args.split}_persons"] = args.num_persons
    options = {"image_size": tuple(args.image_size), "seed": args.seed, "views_per_person": args.views_per_person}
    with PartialState().main_process_first():
        where = {"split": args.split, "on_count_mismatch": args.on_count_mismatch}
        return load_evaluation_set(benchmark, args.data_root, synthetic_options={**options, **persons}, **where)


def evaluate(
    name: str, dataset: datasets.Dataset, args: EvaluationArguments
) -> tuple[list[dict], dict[str, Evaluation], RetrievalSet]:
    """Encode and rank one data set by one model; each process encodes its share. The first result is the plain one."""
    state = PartialState()
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "progress": state.is_main_process}
    model, processor = load_retriever(name, bf16=args.bf16, device=state.device)
    start = time.time()
    encoded, note = cached_retrieval_set(model, processor, dataset, args.cache_dir, limit=args.cache_limit, **options)
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
    for scoring in args.rescore:
        start = time.time()
        ranks = {"t2i": rescore(scoring, encoded, state.is_main_process)}
        evaluations[scoring] = evaluate_ranks(ranks, evaluations["cosine"].person_ids, seed=args.seed)
        seconds = {"rescoring_seconds": round(time.time() - start, 2)}
        results.append({**result, **seconds, "scoring": RESCORINGS[scoring], "metrics": evaluations[scoring].metrics})
    if args.robustness:
        results[0]["robustness"] = measure_robustness(model, processor, dataset, encoded, seed=args.seed, **options)
    return results, evaluations, encoded


@command
def main(arguments: list[str] | None = None) -> None:
    (args,) = parse_arguments(EvaluationArguments, arguments, renamed={"--root": "--data_root"})
    state = PartialState(cpu=args.use_cpu or not torch.cuda.is_available())
    jobs = list(zip(args.benchmark, *map(args.of_each_benchmark, ("model", "compare", "trained_on")), strict=True))
    output_dir, results, comparisons = free_folder(args.output_dir), [], []
    for number, (benchmark, name, other, trained_on) in enumerate(jobs, 1):
        benchmark_name, trained_on, plain = display_name(benchmark), trained_on and display_name(trained_on), []
        column_of(args.protocol, name, benchmark_name, trained_on)  # what would not fit is refused before the work
        dataset = load(benchmark, args)
        about = {"benchmark": benchmark_name, "dataset_type": os.path.basename(os.path.abspath(benchmark))}
        about |= {"split": args.split, "trained_on": trained_on}
        for model in [name] if other is None else [name, other]:
            found, evaluations, encoded = evaluate(model, dataset, args)
            results += [{**result, **about} for result in found]
            shown = found[0]["model"]
            for scoring in args.rescore:
                differences = compare(evaluations[scoring], evaluations["cosine"], seed=args.seed)
                names = {"model": f"{shown}, {RESCORINGS[scoring]}", "other": shown, "benchmark": benchmark_name}
                comparisons.append({**names, "differences": differences})
            if state.is_main_process:
                page = f"{number}-{benchmark_name}-{shown.replace('/', '--')}.html"
                title = f"{shown} on {benchmark_name}"
                write_retrieval_page(os.path.join(output_dir, page), dataset, encoded, evaluations["cosine"], title)
            plain.append((shown, evaluations["cosine"]))
        if other is not None:
            (first, of_first), (second, of_second) = plain
            differences = compare(of_first, of_second, seed=args.seed)
            names = {"model": first, "other": second, "benchmark": benchmark_name}
            comparisons.append({**names, "differences": differences})
    if state.is_main_process:
        print(write_results(output_dir, results, comparisons, args.protocol, vars(args)))
        print(f"\nresults, model-index and report pages in {output_dir}")


if __name__ == "__main__":
    sys.exit(main())
