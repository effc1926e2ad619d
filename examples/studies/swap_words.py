"""How well the models of the study of swaps find false words, beside those that were trained without swaps."""

import numpy as np

from modeling_gadms.false_words.word_detection import group_resamples, ranking_quality


def word_quality(runs: list[dict], plain: list[dict]) -> dict[str, dict]:
    """AUROC of the words of each kind, mean over the seeds, and its gain over `plain`; whole persons are resampled."""
    words = runs[0]["words"]
    flags, persons = np.array(words["is_false"]), np.array(words["person"])
    is_color = np.char.endswith(words["attribute"], ".color")
    found = {}
    for name, chosen in {"all": np.ones_like(is_color), "colours": is_color, "others": ~is_color}.items():
        weights = [None, *group_resamples(persons[chosen], 200)[:, None].astype(float)]
        drawn = [
            [
                np.mean([auroc(np.array(run["words"]["suspicion"])[chosen], flags[chosen], part) for run in cell])
                for part in weights
            ]
            for cell in (runs, plain)
        ]
        values, gains = np.array(drawn[0]), np.subtract(*drawn)
        found[name] = _spread(values) | {"gain": _spread(gains)}
    return found


def auroc(suspicion: np.ndarray, is_false: np.ndarray, weights: np.ndarray | None) -> float:
    found = ranking_quality(suspicion, is_false, weights)[0]
    return float(found if weights is None else found[0])


def _spread(values: np.ndarray) -> dict[str, float]:
    """The first value, and the interval of the others, which are resampled."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}
