"""One table of many models: per benchmark and direction, with intervals and cost, published figures marked beside."""

from typing import Any

from ..person_retrieval.ranking import DIRECTIONS
from .published_results import AT_TEST_TIME, COLUMNS, COSINE, published

PUBLISHED, RELEASED, TRAINED = "published", "as released", "trained here"
COSTS = {
    "parameters": "parameters (M)",
    "image_gflop": "GFLOP per image",
    "caption_gflop": "GFLOP per caption",
    "images_per_second": "images/s",
}
LATEX_SIGNS = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"}
NOTE = (
    "*Published* figures are as given by the authors, not measured here, and often chosen on the test set. Intervals "
    "of 95 % resample the persons. Costs are of one image and one caption, padded as the model needs it; images/s are "
    "of the image tower on {device}, and compare within this table alone. `-`: not known."
)


def leaderboard_rows(results: list[dict[str, Any]], protocol: str) -> list[dict[str, Any]]:
    """Rows in the order of the table: per benchmark and direction the published ones, then the measured, best last.

    Args:
        results (`list[dict]`): each with `model`, `benchmark`, `source` (one of this file's), `incomplete`, `metrics`,
            `{"t2i": {"R@1": Interval}}`, and `cost`, with the keys of `COSTS`.
        protocol (`str`): which published figures stand beside them; see `published_results`.

    Returns:
        `list[dict]`: `model`, `benchmark`, `direction`, `source`, `at_test_time`, `figures`, `{"R@1": (mean, low,
        high)}`, the last two `None` where unknown, and `cost`.
    """
    rows: list[dict[str, Any]] = []
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        of_benchmark = [result for result in results if result["benchmark"] == benchmark]
        for direction in of_benchmark[0]["metrics"]:
            about = {"benchmark": benchmark, "direction": direction}
            if direction == "t2i" and not of_benchmark[0]["incomplete"]:  # as papers give them
                for model, figures in published(protocol).items():
                    found = {name: (value, None, None) for name, value in figures.get(benchmark, {}).items()}
                    beside = {"source": PUBLISHED, "at_test_time": AT_TEST_TIME.get(model, COSINE), "cost": {}}
                    rows += [{**about, "model": model, "figures": found, **beside}] if found else []
            measured = sorted(of_benchmark, key=lambda result: result["metrics"][direction]["R@1"].mean)
            for result in measured:
                found = {name: (i.mean, i.low, i.high) for name, i in result["metrics"][direction].items()}
                beside = {"source": result["source"], "at_test_time": COSINE, "cost": result["cost"]}
                rows.append({**about, "model": result["model"], "figures": found, **beside})
    return rows


def _cells(row: dict[str, Any], with_interval: str) -> list[str]:
    """Figures and costs of a row; `with_interval` says how a figure and its interval are written."""
    cells = []
    for name in COLUMNS:
        mean, low, high = row["figures"].get(name, (None, None, None))
        if mean is None:
            cells.append("-")
        else:
            cells.append(f"{mean:.2f}" if low is None else with_interval.format(mean=mean, low=low, high=high))
    return cells + [f"{row['cost'][name]:,.1f}" if name in row["cost"] else "-" for name in COSTS]


def _parts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["benchmark"], DIRECTIONS[row["direction"]]), []).append(row)
    return parts


def markdown(rows: list[dict[str, Any]], device: str) -> str:
    """The rows of [`leaderboard_rows`] as a table for each benchmark and direction."""
    lines = ["# Leaderboard", "", NOTE.format(device=device)]
    columns = ["model", "source", "at test time", *COLUMNS, *COSTS.values()]
    for (benchmark, direction), part in _parts(rows).items():
        lines += ["", f"## {benchmark}, {direction}", ""]
        lines += ["| " + " | ".join(columns) + " |", "|---" * 3 + "|---:" * (len(columns) - 3) + "|"]
        for row in part:
            source = f"*{PUBLISHED}*" if row["source"] == PUBLISHED else row["source"]
            cells = [row["model"], source, row["at_test_time"], *_cells(row, "{mean:.2f} [{low:.1f}, {high:.1f}]")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def latex(rows: list[dict[str, Any]]) -> str:
    """The same as `tabular`s of the package booktabs; published models are marked by a dagger."""
    blocks = ["% needs \\usepackage{booktabs}; a dagger marks published figures, not measured here"]
    for (benchmark, direction), part in _parts(rows).items():
        columns = ["Model", *COLUMNS, *COSTS.values()]
        lines = [f"% {benchmark}, {direction}", "\\begin{tabular}{l" + "r" * (len(columns) - 1) + "}", "\\toprule"]
        lines += [" & ".join(map(_escaped, columns)) + " \\\\", "\\midrule"]
        for row in part:
            mark = "$^\\dagger$" if row["source"] == PUBLISHED else ""
            cells = _cells(row, "{mean:.2f} {{\\scriptsize [{low:.1f}, {high:.1f}]}}")
            lines.append(" & ".join([_escaped(row["model"]) + mark, *cells]) + " \\\\")
        blocks.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(blocks)


def _escaped(text: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)
