"""The tables and the figure of the repair study."""

import numpy as np
from study_report import error_bars, interval, pyplot, table

from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference

SHARES = {
    "right_before": "right as said",
    "right_after": "right once repaired",
    "changed": "changed",
    "false_of_changed": "of these false",
    "right_of_changed": "of these now right",
}
WAYS = {"t2i": "text to image", "i2t": "image to text"}


def summarize(cells: dict[tuple[str, int], dict]) -> dict:
    """R@1 of each cell and way over the seeds, and its gain over none; whole persons are resampled."""
    rows: dict[str, dict] = {}
    for cell in dict.fromkeys(name for name, _ in cells):
        # the runs of true captions are those of all rates, and there may be more of them
        runs = {seed: run for (name, seed), run in cells.items() if name == cell and ("none", seed) in cells}
        if not runs:
            continue
        rows[cell] = {"seeds": sorted(runs)}
        for way in WAYS:
            groups = next(iter(runs.values()))["persons"][way]
            values = np.mean([run["values"][way] for run in runs.values()], axis=0)
            rows[cell][way] = vars(bootstrap_interval(values, groups=groups))
            if cell != "none":
                plain = np.mean([cells["none", seed]["values"][way] for seed in runs], axis=0)
                rows[cell][way]["gain"] = vars(paired_difference(values, plain, groups=groups))
    return rows


def written(noise_rate: float, rows: dict, words: dict) -> str:
    """Both tables of a noise rate."""
    lines = []
    for cell, row in rows.items():
        line = [cell, len(row["seeds"])]
        for way in WAYS:
            gain = row[way].get("gain")
            line += [interval(row[way]), f"{interval(gain, sign='+')}, p {gain['p_value']:.3f}" if gain else "-"]
        lines.append(line)
    head = ["captions", "seeds", *(part for way in WAYS.values() for part in (f"R@1, {way}", "gain over none"))]
    found = [
        [name, interval(one["posterior"], 3), *(f"{one[key]:.3f}" for key in SHARES)]
        for name, one in words["groups"].items()
    ]
    titles = ["words", "AUROC", *SHARES.values()]
    return (
        f"{noise_rate} of the words false; estimated: {words['share_false']:.2f}. Expected calibration error of the "
        f"posterior: {words['calibration_error']:.3f}.\n\n{table(titles, found)}\n\n{table(head, lines)}"
    )


def draw(results: dict[str, dict]) -> pyplot.Figure:
    size = 6 * len(results), 1.2 + 0.4 * max(len(one["cells"]) for one in results.values())
    figure, axes = pyplot.subplots(1, len(results), figsize=size, layout="constrained", squeeze=False)
    for axis, (noise_rate, one) in zip(axes[0], results.items(), strict=True):
        rows = one["cells"]
        for place, way in enumerate(WAYS):
            found = [row[way] for row in rows.values()]
            at = np.arange(len(rows)) + 0.3 * place
            means = [one["mean"] for one in found]
            axis.errorbar(means, at, xerr=error_bars(found), fmt="o", capsize=3, label=WAYS[way])
        axis.set_yticks(np.arange(len(rows)) + 0.15, list(rows))
        axis.set(xlabel="R@1", title=f"{noise_rate} of words false")
        axis.invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
