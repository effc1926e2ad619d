"""One table of many models: per benchmark and direction, with intervals and cost, published figures marked beside."""

import os
from typing import Any

from dataset_webperson.pages import write_page

from ..hub.listings import read_json
from ..person_retrieval.ranking import DIRECTIONS
from .benchmarks import INCOMPLETE, display_name
from .published_results import AT_TEST_TIME, COLUMNS, COSINE, SELECTED_ON_TEST, published
from .run_folders import METRICS_FILE, seed_folders, selected_on
from .text_table import Table, latex_page, markdown_page

PUBLISHED, RELEASED, TRAINED = "published", "as released", "trained here"
COSTS = {
    "parameters": "parameters (M)",
    "image_gflop": "GFLOP per image",
    "caption_gflop": "GFLOP per caption",
    "images_per_second": "images/s",
}
NOTE = (
    "*Published* figures are as given by the authors, not measured here; *selected on test* are those of methods "
    "whose released code chooses its checkpoint there by default, and of others it is not known. Of what was trained "
    "here the run records how its weights were selected. Intervals of 95 % resample the persons; after ± stands the "
    "standard deviation over trainings. Costs are of one image and one caption, padded as the model needs it; "
    "images/s are of the image tower on {device}, and compare within this table alone. `-`: not known."
)


def leaderboard_rows(results: list[dict[str, Any]], protocol: str) -> list[dict[str, Any]]:
    """Rows in the order of the table: per benchmark and direction the published ones, then the measured, best last.

    Args:
        results (`list[dict]`): each with `model`, `benchmark`, `source` (one of this file's), `incomplete`, `metrics`,
            `{"t2i": {"R@1": Interval}}`, `deviation`, `{"t2i": {"R@1": 1.2}}` of several trainings or `None`, and
            `cost`, with the keys of `COSTS`.
        protocol (`str`): which published figures stand beside them; see `published_results`.

    Returns:
        `list[dict]`: `model`, `benchmark`, `direction`, `source`, `at_test_time`, `figures`, `{"R@1": (mean, low,
        high)}`, the last two `None` where unknown, `deviation`, `{"R@1": 1.2}` or `None`, and `cost`.
    """
    rows: list[dict[str, Any]] = []
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        of_benchmark = [result for result in results if result["benchmark"] == benchmark]
        for direction in of_benchmark[0]["metrics"]:
            about = {"benchmark": benchmark, "direction": direction}
            if direction == "t2i" and not of_benchmark[0]["incomplete"]:  # as papers give them
                for model, figures in published(protocol).items():
                    found = {name: (value, None, None) for name, value in figures.get(benchmark, {}).items()}
                    source = f"{PUBLISHED}, selected on test" if model in SELECTED_ON_TEST else PUBLISHED
                    beside = {"source": source, "at_test_time": AT_TEST_TIME.get(model, COSINE)}
                    unknown: dict[str, Any] = {"cost": {}, "deviation": None}
                    rows += [{**about, "model": model, "figures": found, **beside, **unknown}] if found else []
            measured = sorted(of_benchmark, key=lambda result: result["metrics"][direction]["R@1"].mean)
            for result in measured:
                found = {name: (i.mean, i.low, i.high) for name, i in result["metrics"][direction].items()}
                beside = {"source": result["source"], "at_test_time": COSINE, "cost": result["cost"]}
                beside["deviation"] = result["deviation"] and result["deviation"][direction]
                rows.append({**about, "model": result["model"], "figures": found, **beside})
    return rows


def leaderboard_tables(rows: list[dict[str, Any]], with_sources: bool) -> list[Table]:
    """The rows of [`leaderboard_rows`] as a table for each benchmark and direction.

    Args:
        with_sources (`bool`): columns say who trained a model and what it does at test time; without them, for narrow
            pages, a dagger marks published figures.
    """
    tables: dict[str, Table] = {}
    heads = ["model", "source", "at test time"] if with_sources else ["model"]
    for row in rows:
        title = f"{row['benchmark']}, {DIRECTIONS[row['direction']]}"
        table = tables.setdefault(title, Table(title, [*heads, *COLUMNS, *COSTS.values()], [], words=len(heads)))
        source, is_published = row["source"], row["source"].startswith(PUBLISHED)
        if with_sources:
            words = [row["model"], f"*{source}*" if is_published else source, row["at_test_time"]]
        else:
            words = [row["model"] + "†" * is_published]
        table.rows.append([*words, *_figures(row)])
    return list(tables.values())


def trainings_of(name: str) -> list[str]:
    """Folders or Hub ids of one model's trainings: of a sweep over seeds, those between commas, or itself."""
    return list(seed_folders(name).values()) or name.split(",")


def trained_here(runs: list[str]) -> str:
    """The source of what was trained here, with how its weights were selected where every training's folder says."""
    found = {selected_on(run) for run in runs}
    if None in found:
        return TRAINED
    ways = [way if way == "last epoch" else f"selected on {way}" for way in sorted(filter(None, found))]
    return f"{TRAINED}, {' or '.join(ways)}"


def trained_on(folder: str) -> list[str]:
    """The data sets that a run of `finetune.py` was trained on, as tables name them; nothing of what left no word."""
    if not os.path.isdir(folder):
        return []
    arguments = (read_json(folder, METRICS_FILE) or {}).get("arguments", {})
    return [display_name(name) for name in arguments.get("dataset_name", "").split(" + ") if name]


def matrix_tables(results: list[dict[str, Any]]) -> list[Table]:
    """Models by what they were trained on, against what they are tested on: R@1 and mAP, text to image.

    Args:
        results (`list[dict]`): as in [`leaderboard_rows`], with `trained_on`, names of benchmarks, and `row`, equal in
            the results of one model. Figures of a model on what it was trained on are bold.
    """
    benchmarks = list(dict.fromkeys(result["benchmark"] for result in results))
    rows: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["row"], []).append(result)
    tables = []
    for measure in ("R@1", "mAP"):
        cells = []
        for of_model in rows.values():
            first = of_model[0]
            cells.append([first["model"], " + ".join(first["trained_on"]) or "-"])
            figures = {}
            for result in of_model:
                i = result["metrics"]["t2i"][measure]
                plain = f"{i.mean:.2f} [{i.low:.1f}, {i.high:.1f}]"
                inside = result["benchmark"].removesuffix(f" ({INCOMPLETE})") in first["trained_on"]
                figures[result["benchmark"]] = f"**{plain}**" if inside else plain
            cells[-1] += [figures.get(name, "-") for name in benchmarks]
        notes = ["Bold: trained on the train split of the same benchmark."]
        title = f"Across data sets, text to image, {measure}"
        tables.append(Table(title, ["model", "trained on", *benchmarks], cells, words=2, notes=notes))
    return tables


def _figures(row: dict[str, Any]) -> list[str]:
    cells = []
    for name in COLUMNS:
        mean, low, high = row["figures"].get(name, (None, None, None))
        if mean is None:
            cells.append("-")
        else:
            spread = f" ± {row['deviation'][name]:.2f}" if row["deviation"] else ""
            cells.append(f"{mean:.2f}{spread}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]"))
    return cells + [_cost(row["cost"][name]) if name in row["cost"] else "-" for name in COSTS]


def _cost(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def markdown(rows: list[dict[str, Any]], device: str) -> str:
    """The rows of [`leaderboard_rows`] as a page; `device` is what encoded the images."""
    return f"# Leaderboard\n\n{NOTE.format(device=device)}\n\n{markdown_page(leaderboard_tables(rows, True))}"


def write_leaderboard_page(rows: list[dict[str, Any]], device: str, path: str) -> None:
    """The same as a page of HTML, whose tables are sorted by a click on a head."""
    note = NOTE.format(device=device).translate(str.maketrans("", "", "*`"))
    write_page(path, "leaderboard.html", title="Leaderboard", note=note, tables=leaderboard_tables(rows, True))


def latex(rows: list[dict[str, Any]]) -> str:
    """The same as `tabular`s of the package booktabs; published models are marked by a dagger."""
    return f"% a dagger marks published figures, not measured here\n{latex_page(leaderboard_tables(rows, False))}"
