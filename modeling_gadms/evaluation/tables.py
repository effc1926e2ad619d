"""The output of an evaluation: tables as Markdown and LaTeX, JSON, and the `model-index` of a model card."""

import json
import os

import torch
import transformers
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from dataset_webperson.files import write_json, write_text

from ..person_retrieval.ranking import DIRECTIONS, METRICS
from .breakdown import breakdown_table
from .published_results import protocol_table
from .robustness import robustness_table
from .text_table import Table, latex_page, markdown_page
from .twins import twins_table

WAYS = {**DIRECTIONS, "i2i": "image to image"}  # of which models of captions are measured on the first two


def write_results(
    folder: str, results: list[dict], comparisons: list[dict], protocol: str | None, arguments: dict
) -> str:
    """Write results.json, results.md, results.tex and model-index.yaml; returns the text of results.md.

    Args:
        results, comparisons: as in [`results_table`] and [`comparison_table`].
        protocol (`str`, *optional*): a table of `published_results` to lay out as well.
        arguments (`dict`): the arguments of the command; kept in the JSON with the versions of the libraries.
    """
    tables = [results_table(results)]
    if protocol:
        tables.append(protocol_table(protocol, results))
    if comparisons:
        tables.append(comparison_table(comparisons))
    if any("similarity_distribution" in result for result in results):
        tables.append(distribution_table(results))
    if any("twin_accuracy" in result for result in results):
        tables.append(twins_table(results))
    for result in results:
        if result.get("robustness"):
            title = f"Robustness of {result['model']} on {result['benchmark']}"
            tables.append(robustness_table(result["robustness"], title))
        if result.get("breakdown"):
            title = f"{result['model']} on {result['benchmark']} in parts, text to image"
            tables.append(breakdown_table(result["breakdown"], title))
    text = markdown_page(tables)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    content = {"results": results, "comparisons": comparisons, "arguments": arguments, "versions": versions}
    # intervals and differences become objects of their fields
    write_json(os.path.join(folder, "results.json"), json.loads(json.dumps(content, default=vars)))
    write_text(os.path.join(folder, "results.md"), text + "\n")
    write_text(os.path.join(folder, "results.tex"), latex_page(tables))
    write_text(os.path.join(folder, "model-index.yaml"), model_index(results))
    return text


def results_table(results: list[dict]) -> Table:
    """One row per result and direction, each figure with its interval.

    Args:
        results (`list[dict]`): each with `model`, `benchmark`, `scoring` and `metrics`,
            `{"t2i": {"R@1": Interval}}`; a re-scoring has one direction only. A result with `incomplete` is of a copy
            that is not the benchmark; the reason stands below the table, as does the number of queries that were
            `skipped`.
    """
    rows = []
    for result in results:
        for direction, metrics in result["metrics"].items():
            cells = [f"{m.mean:.2f} [{m.low:.1f}, {m.high:.1f}]" for m in (metrics[name] for name in METRICS)]
            rows.append([result["model"], result["benchmark"], result["scoring"], WAYS[direction], *cells])
    columns = ["model", "benchmark", "scoring", "direction", *METRICS]
    notes = incomplete_notes(results)
    left_out = {result["benchmark"]: result for result in results if result.get("skipped")}
    for name, result in left_out.items():
        skipped, queries = result["skipped"], result["skipped"] + result["queries"]
        notes.append(f"{name}: {skipped:,} of {queries:,} queries have no match that counts, and are left out.")
    return Table("Retrieval", columns, rows, words=4, notes=notes)


def distribution_table(results: list[dict]) -> Table:
    """mSD of each result that has it, text to image, as an `Interval` in `similarity_distribution`."""
    rows = []
    for result in results:
        if "similarity_distribution" in result:
            m = result["similarity_distribution"]
            rows.append([result["model"], result["benchmark"], f"{m.mean:.2f} [{m.low:.1f}, {m.high:.1f}]"])
    return Table("Similarity distribution", ["model", "benchmark", "mSD"], rows, words=2)


def incomplete_notes(results: list[dict]) -> list[str]:
    """A sentence for each benchmark among `results` whose copy is not whole."""
    reasons = {result["benchmark"]: result["incomplete"] for result in results if result.get("incomplete")}
    return [f"**{name}: not figures of the benchmark.** Of this copy, {why}." for name, why in reasons.items()]


def comparison_table(comparisons: list[dict]) -> Table:
    """One row per pair of models, direction and metric.

    Args:
        comparisons (`list[dict]`): each with `model`, `other`, `benchmark` and `differences`,
            `{"t2i": {"R@1": Difference}}`; where scoring anew is compared with the cosine, `ms_per_query`, its cost.
    """
    columns = ["model", "minus", "benchmark", "direction", "metric", "difference", "95 % interval", "p"]
    with_cost = any("ms_per_query" in comparison for comparison in comparisons)
    rows = []
    for comparison in comparisons:
        for direction, differences in comparison["differences"].items():
            for name, d in differences.items():
                head = [comparison["model"], comparison["other"], comparison["benchmark"], WAYS[direction], name]
                cells = [f"{d.mean:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]", f"{d.p_value:.4f}"]
                if with_cost:
                    cells.append(f"+{comparison['ms_per_query']:.2f}" if "ms_per_query" in comparison else "-")
                rows.append(head + cells)
    return Table("Differences", [*columns, *["ms per query"] * with_cost], rows, words=5)


def eval_result(
    direction: str, dataset_type: str, dataset: str, split: str, scoring: str, name: str, value: float
) -> EvalResult:
    """One figure as the Hub indexes it; any scoring but the plain cosine is named with the metric."""
    return EvalResult(
        task_type=f"{WAYS[direction].replace(' ', '-')}-retrieval",
        task_name=f"Person retrieval, {WAYS[direction]}",
        dataset_type=dataset_type,
        dataset_name=dataset,
        dataset_split=split,
        metric_type=name,
        metric_name=name if scoring == "cosine" else f"{name} ({scoring})",
        metric_value=round(value, 2),
    )


def model_index(results: list[dict]) -> str:
    """The `model-index` block of a model card's YAML head, one entry per model.

    Args:
        results (`list[dict]`): as in [`results_table`], and `dataset_type`, the name of the benchmark as an id, and
            `split`. Any scoring but the plain cosine is named with the metric; those of an `incomplete` copy are left
            out.
    """
    entries = []
    results = [result for result in results if not result.get("incomplete")]
    for model in dict.fromkeys(result["model"] for result in results):
        found = [
            eval_result(
                direction,
                result["dataset_type"],
                result["benchmark"],
                result["split"],
                result["scoring"],
                name,
                interval.mean,
            )
            for result in results
            if result["model"] == model
            for direction, metrics in result["metrics"].items()
            for name, interval in metrics.items()
        ]
        entries += eval_results_to_model_index(model, found)
    return yaml.safe_dump({"model-index": entries}, sort_keys=False, allow_unicode=True)
