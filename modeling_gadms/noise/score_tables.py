"""Tables of how well methods find false words: in all, by attribute, by groups of words, and against a ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.text_table import Table
from ..false_words.word_detection import METRICS, false_word_metrics, flat_scores, ranking_quality
from .word_groups import by_group

VISIBLE = 0.9  # AUROC of the ceiling from which on an attribute counts as visible
READS_LABELS = {
    "all": "all scores in one, weighted by the truth of the other half of the persons",
    "oracle": "a classifier that is taught the true attributes of other drawn persons: what the pictures show",
}
AMONG = {
    "wrong in both": "False words that are wrong in another caption of the image too, or in one alone, stand among "
    "the true words of attributes that several captions name.",
    "things made up": "Things that are made up, and things of wrong value, stand among the true words of attributes "
    "that may be made up.",
}
Results = Mapping[str, Mapping[str, Any]]


def figures(
    predictions: Mapping[str, Sequence[Sequence[Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    persons: Sequence[int],
    groups: Mapping[str, np.ndarray],
    scored: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """For each method the metric's figures and `by_group`; where `oracle` is among them also `visible`.

    `visible` has the `AUROC` over the words of attributes that the oracle finds false ones of with an AUROC of at
    least `VISIBLE`, and `of_oracle`, its ratio to the oracle's.

    Args:
        scored (`Mapping[str, float]`, *optional*): the share of the words that a method scored itself; one below 1 is
            among its figures, as `scored`.
    """
    words = [word for one in references for word in one]
    is_false = np.array([word["is_false"] for word in words], dtype=bool)
    scores = {name: flat_scores(found, references) for name, found in predictions.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, found in predictions.items():
        results[name] = false_word_metrics(found, references, groups=persons)
        results[name]["by_group"] = by_group(scores[name], is_false, groups)
        if (share := (scored or {}).get(name, 1.0)) < 1:
            results[name]["scored"] = share
    if "oracle" in results and (attributes := visible_attributes(results)):
        chosen = np.isin([word["attribute"] for word in words], attributes)
        aurocs = {name: float(ranking_quality(one[chosen], is_false[chosen])[0]) for name, one in scores.items()}
        for name, auroc in aurocs.items():
            results[name]["visible"] = {"AUROC": auroc, "of_oracle": auroc / aurocs["oracle"]}
    return results


def visible_attributes(results: Results) -> list[str]:
    """The attributes that the oracle shows to be visible at the size of the images."""
    ceilings = {name: one["AUROC"] for name, one in results["oracle"]["by_attribute"].items()}
    return [name for name, auroc in ceilings.items() if auroc is not None and auroc >= VISIBLE]


def written(results: Results) -> str:
    """All tables, as Markdown."""
    first = next(iter(results.values()))
    intervals = {name: {key: _interval(found, key) for key in METRICS} for name, found in results.items()}
    parts = [_table("method", intervals)]
    marked = [f"`{name}` reads labels: {READS_LABELS[name]}." for name in results if name in READS_LABELS]
    marked += [
        f"`{name}` scores {_percent(found['scored'])} of the words; the others have the mean of these."
        for name, found in results.items()
        if "scored" in found
    ]
    if marked:
        parts.append("\n".join(marked))
    if "visible" in first:
        parts += [
            "## Words of visible attributes",
            f"Visible is an attribute whose false words `oracle` finds with an AUROC of at least {VISIBLE}: "
            f"{', '.join(visible_attributes(results))}.",
            _table(
                "method",
                {
                    name: {
                        "AUROC": _number(found["visible"]["AUROC"]),
                        "of oracle's": _number(found["visible"]["of_oracle"]),
                    }
                    for name, found in results.items()
                },
            ),
        ]
    groups = {
        f"{name} ({group['num_false']:,} false of {group['num_words']:,})": {
            method: found["by_group"][name] for method, found in results.items()
        }
        for name, group in first["by_group"].items()
    }
    attributes = {
        name: {method: found["by_attribute"][name] for method, found in results.items()}
        for name in first["by_attribute"]
    }
    among = " ".join(text for name, text in AMONG.items() if name in first["by_group"])
    for title, rows in (("group of words", groups), ("attribute", attributes)):
        cells = {name: {method: _number(one["AUROC"]) for method, one in row.items()} for name, row in rows.items()}
        parts += [f"## AUROC by {title}", *([among] if among and rows is groups else []), _table(title, cells)]
    return "\n\n".join(parts)


def _table(corner: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(next(iter(rows.values())))
    cells = [[name, *(of_row[key] for key in columns)] for name, of_row in rows.items()]
    return Table("", [corner, *columns], cells).markdown()


def _interval(found: Mapping[str, Any], key: str) -> str:
    if found[key] is None:
        return "-"
    return f"{found[key]:.3f} [{found[f'{key}_low']:.3f}, {found[f'{key}_high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: float) -> str:
    """A share between 0 and 1, rounded, but to neither of them."""
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"
