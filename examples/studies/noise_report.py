"""The tables and the picture of the study of noise detection."""

import numpy as np
from matplotlib.figure import Figure
from study_report import interval, pyplot, table

EVIDENCE, OWN_TOWER = "patch evidence", "patch evidence, own tower"
COMPARED = [OWN_TOWER, EVIDENCE, "masked drop", "per-head evidence, all layers", "GASS, paper", "GASS, released code"]
COMPARED += ["cosine to patches (NAM)", "decoder's surprise"]


def shown(found: dict[str, float], key: str, digits: int = 3) -> str:
    """One figure of `quality` with its interval."""
    return interval({"mean": found[key], "low": found[f"{key}_low"], "high": found[f"{key}_high"]}, digits)


def draw(results: dict[str, dict], groups: dict[str, np.ndarray]) -> Figure:
    """AUROC of each score over all tokens, with intervals, and by what the words speak of."""
    names = list(results)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(17, 6), layout="constrained", width_ratios=(1, 2.2))
    values = [results[name]["tokens"] for name in names]
    bars = [[value["auroc"] - value["auroc_low"], value["auroc_high"] - value["auroc"]] for value in values]
    left.barh(names, [value["auroc"] for value in values], xerr=np.array(bars).T, color="tab:orange")
    left.axvline(0.5, color="black", linewidth=1)
    left.set(xlim=(0.4, 1), xlabel="AUROC of false against true attribute tokens, 95 % intervals")
    left.set_ylim(len(names) - 0.5, -0.5)  # beside the rows on the right
    grid = np.array([[results[name]["groups"][group]["auroc"] for group in groups] for name in names])
    right.imshow(grid, vmin=0.3, vmax=1, cmap="RdYlGn", aspect="auto")
    right.set_xticks(range(len(groups)), groups, rotation=60, ha="right")
    right.set_yticks([])
    for (row, column), value in np.ndenumerate(grid):
        right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
    return figure


def written(columns: dict[str, np.ndarray], results: dict[str, dict], counts: dict[str, list[int]]) -> str:
    """The tables: every score over all tokens and words, then the compared ones by what the word speaks of."""
    cells = [(unit, key) for unit in ("tokens", "words") for key in ("auroc", "average_precision")]
    head = ["score", "AUROC, tokens", "average precision, tokens", "AUROC, words", "average precision, words"]
    rows = [[name, *(shown(found[unit], key) for unit, key in cells)] for name, found in results.items()]
    zero = {name: (columns[name] == 0).mean() for name in results if name.startswith("GASS, ")}
    compared = [name for name in COMPARED if name in results]
    by_group = [
        [
            f"{group} ({number}, {false})",
            *(shown(results[name]["groups"][group], "auroc", digits=2) for name in compared),
        ]
        for group, (number, false) in counts.items()
    ]
    return "\n\n".join(
        [
            f"{len(set(columns['caption']))} captions, {len(columns['word'])} attribute tokens, "
            f"{columns['is_false'].mean():.1%} false (chance for average precision).",
            table(head, rows),
            "Attribute tokens whose score is exactly 0, and which no score can order among themselves: "
            + ", ".join(f"{name} {share:.0%}" for name, share in zero.items())
            + ".",
            "AUROC of words, by what they speak of (number of words, of them false):",
            table(["words", *compared], by_group),
        ]
    )
